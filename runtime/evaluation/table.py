"""Show an evaluation, or the comparison of two, as tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from echovlm_edge.runtime.contracts.tables import figures as figure_column
from echovlm_edge.runtime.contracts.tables import names, new_table, print_table, words
from echovlm_edge.runtime.evaluation.comparison import Comparison
from echovlm_edge.runtime.evaluation.figures import ALL, Difference, by_place
from echovlm_edge.runtime.evaluation.notes import counted
from echovlm_edge.runtime.evaluation.published import COMPARABLE, PAPER, PAPER_TITLES
from echovlm_edge.runtime.evaluation.schema import Evaluation, Figure
from echovlm_edge.runtime.evaluation.scoring.tokens import CHARACTERS, TOKENS

SHOWN_SKIPPED = 10
STYLES = {"worse": "red", "better": "green", "cannot tell": "dim"}


def print_evaluation(console: Console, evaluation: Evaluation) -> None:
    """Print the figures of all rows, the headlines of each group, the paper's figures beside them, and what to know of them."""
    model, found = evaluation.settings.model, by_place(evaluation.figures)
    table = new_table(
        f"{model.model}, {model.precision}, {evaluation.where}: {counted(len(evaluation.rows), 'row')}",
        *(names("metric"), figure_column("figure"), figure_column("95 % interval"), figure_column("rows")),
    )
    for metric in evaluation.metrics:
        if figure := found.get((metric.key, ALL)):
            table.add_row(metric.title, f"{figure.value:.2f}", interval(figure), f"{figure.rows:,}")
    print_table(console, table)
    _print_groups(console, evaluation)
    paper = new_table("Beside the paper's figures", names("metric"), *map(figure_column, ("paper, 11B", *TOKENS)))
    for title, *cells in paper_rows(evaluation):
        paper.add_row(title, *cells)
    print_table(console, paper)
    for sentence in (*COMPARABLE, *evaluation.notes):
        console.print(sentence, highlight=False, markup=False)
    for row in evaluation.skipped[:SHOWN_SKIPPED]:
        console.print(f"skipped: {row.name} {row.reason}.", highlight=False, markup=False)


def _print_groups(console: Console, evaluation: Evaluation) -> None:
    """Print the headlines by group: those of texts, and those of what is right or wrong."""
    found = by_place(evaluation.figures)
    shown = [metric for metric in evaluation.metrics if metric.headline and (metric.key, ALL) in found]
    texts = [metric for metric in shown if metric.title.endswith(CHARACTERS) or metric.family == "BERTScore"]
    others = [metric for metric in shown if metric not in texts]
    for title, metrics in ((f"Texts by group (tokens: {CHARACTERS})", texts), ("What is right, by group", others)):
        headings = [metric.title.removesuffix(f", {CHARACTERS}").replace(" ", "\n") for metric in metrics]
        table = new_table(title, words("group"), figure_column("rows"), *map(figure_column, headings))
        for group in dict.fromkeys(figure.group for figure in evaluation.figures):
            here = [found.get((metric.key, group)) for metric in metrics]
            if any(here):
                rows = max(figure.rows for figure in here if figure)
                table.add_row(group, f"{rows:,}", *(f"{figure.value:.1f}" if figure else "" for figure in here))
        if table.row_count:
            print_table(console, table)


def paper_rows(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """Return the paper's figures with those of all rows: title, paper, and one for each kind of tokens."""
    found = by_place(evaluation.figures)
    rows = []
    for name, published in PAPER.items():
        keys = [name] * len(TOKENS) if name == "bertscore" else [f"{name}_{tokens}" for tokens in TOKENS]
        here = [found.get((key, ALL)) for key in keys]
        rows.append(
            (PAPER_TITLES[name], f"{published:.2f}", *(f"{one.value:.2f}" if one else "not computed" for one in here))
        )
    return rows


def interval(figure: Figure) -> str:
    """Write a figure's interval; nothing for a single row."""
    return "" if figure.low is None or figure.high is None else f"{figure.low:.2f} to {figure.high:.2f}"


def print_comparison(console: Console, found: Comparison) -> None:
    """Print what differs between two runs: of all rows every figure, of the other groups what is better or worse."""
    for group, differences in found.by_group.items():
        told = [one for one in differences if group == ALL or one.verdict in ("better", "worse")]
        table = new_table(
            f"{group}: {found.before} and {found.after}",
            *(names("metric"), *map(figure_column, ("before", "after", "change", "95 % interval", "rows"))),
            words("verdict"),
        )
        for one in told:
            table.add_row(one.metric.title, *difference_cells(one), one.verdict, style=STYLES.get(one.verdict))
        if told:
            print_table(console, table)
    for sentence in (*found.notes, "Of a group, the tables show what is better or worse."):
        console.print(sentence, highlight=False, markup=False)


def difference_cells(one: Difference) -> Sequence[str]:
    """Write a difference: before, after, change, interval, rows."""
    return (
        f"{one.before:.2f}",
        f"{one.after:.2f}",
        f"{one.change:+.2f}",
        f"{one.low:+.2f} to {one.high:+.2f}",
        f"{one.rows:,}",
    )
