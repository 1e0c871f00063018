"""Make the page of an evaluation: one file that works without a network, in light and dark, with the worst answers' pictures in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from echovlm_edge.runtime.evaluation.drawing import charts
from echovlm_edge.runtime.evaluation.drawing.thumbnails import thumbnails
from echovlm_edge.runtime.evaluation.figures import ALL, by_place, grouped
from echovlm_edge.runtime.evaluation.notes import counted
from echovlm_edge.runtime.evaluation.published import COMPARABLE
from echovlm_edge.runtime.evaluation.schema import Evaluation, Figure, ScoredRow
from echovlm_edge.runtime.evaluation.scoring.metric import Metric
from echovlm_edge.runtime.evaluation.table import interval, paper_rows
from echovlm_edge.runtime.profiling.drawing.rendering import render

PACKAGE = "echovlm_edge.runtime.evaluation.drawing"
WORST = 5  # rows shown for each metric and group
LARGEST_TABLE = 2000  # skipped rows


def evaluation_page(evaluation: Evaluation, images: Path, library: str) -> str:
    """Make the page.

    Args:
        evaluation: what it shows.
        images: the folder of the rows' pictures.
        library: the plotting library, see `plotting_library`.
    """
    found, groups = by_place(evaluation.figures), grouped(evaluation.rows)
    shown = [metric for metric in evaluation.metrics if metric.headline and (metric.key, ALL) in found]
    shown = shown or [metric for metric in evaluation.metrics if (metric.key, ALL) in found]
    worst = {(metric.title, group): _worst(metric, rows) for metric in shown for group, rows in groups.items()}
    used = {row.key: row for rows in worst.values() for row, _ in rows}
    data = {
        "groups": {group: _group(evaluation, group, found, shown) for group in groups},
        "metrics": {
            metric.title: {
                "note": metric.note,
                "byGroup": charts.by_group(
                    metric.title, [found[metric.key, group] for group in groups if (metric.key, group) in found]
                ),
                "histogram": {
                    group: charts.histogram(metric.title, scores)
                    for group, rows in groups.items()
                    if (scores := [score for _, score in _scores(metric, rows)])
                },
                "worst": {
                    group: [{"row": row.key, "score": f"{score:.1f}"} for row, score in worst[metric.title, group]]
                    for group in groups
                },
            }
            for metric in shown
        },
        "cases": {row.key: _case(row, images) for row in used.values()},
        "paper": paper_rows(evaluation),
        "skipped": [[row.name, row.reason] for row in evaluation.skipped[:LARGEST_TABLE]],
        "facts": _facts(evaluation),
        "notes": [*COMPARABLE, *evaluation.notes],
        "computed": [[metric.title, metric.note] for metric in evaluation.metrics if (metric.key, ALL) in found],
    }
    title = f"{evaluation.settings.model.model}: evaluation"
    return render("evaluation.html.jinja", title, library, data, [PACKAGE])


def _group(
    evaluation: Evaluation, group: str, found: Mapping[tuple[str, str], Figure], shown: Sequence[Metric]
) -> dict[str, Any]:
    figures = [(metric, found[metric.key, group]) for metric in evaluation.metrics if (metric.key, group) in found]
    tiles = [(metric.title, f"{figure.value:.1f}", _tile_note(figure)) for metric, figure in figures if metric in shown]
    return {
        "summary": _sentence(evaluation, group, tiles),
        "tiles": tiles,
        "rows": [
            [metric.title, f"{figure.value:.2f}", interval(figure), f"{figure.rows:,}"] for metric, figure in figures
        ],
    }


def _tile_note(figure: Figure) -> str:
    rows = counted(figure.rows, "row")
    return rows if figure.low is None or figure.high is None else f"{figure.low:.1f} to {figure.high:.1f}; {rows}"


def _sentence(evaluation: Evaluation, group: str, tiles: Sequence[tuple[str, str, str]]) -> str:
    model, skipped = evaluation.settings.model, len(evaluation.skipped)
    without = f", and {skipped:,} {'was' if skipped == 1 else 'were'} skipped" if skipped else ""
    first = f" {tiles[0][0]} is {tiles[0][1]}{'' if group == ALL else f' for {group}'}." if tiles else ""
    return f"{model.model} ({model.precision}, {evaluation.where}) answered {counted(len(evaluation.rows), 'row')}{without}.{first}"


def _scores(metric: Metric, rows: Sequence[ScoredRow]) -> list[tuple[ScoredRow, float]]:
    """Return each row's own figure, where it has one."""
    having = [row for row in rows if metric.key in row.statistics]
    if not having:
        return []
    values = metric.value(np.array([row.statistics[metric.key] for row in having]))
    return [(row, float(value)) for row, value in zip(having, values, strict=True) if not np.isnan(value)]


def _worst(metric: Metric, rows: Sequence[ScoredRow]) -> list[tuple[ScoredRow, float]]:
    sign = 1 if metric.more_is_better else -1
    return sorted(_scores(metric, rows), key=lambda scored: (sign * scored[1], scored[0].number))[:WORST]


def _case(row: ScoredRow, images: Path) -> dict[str, Any]:
    return {
        "name": row.name,
        "about": ", ".join((row.task.value, row.region, row.language, *row.not_sent)),
        "question": row.question,
        "texts": [
            ["Reference", row.reference],
            ["Answer" if row.finish != "length" else "Answer, cut off", row.answer or "(nothing)"],
        ],
        **thumbnails(row.pictures, images),
    }


def _facts(evaluation: Evaluation) -> dict[str, str]:
    settings = evaluation.settings
    model = settings.model
    return {
        "model": f"{model.model}, {model.precision} for {model.target} ({model.bundle_id[:12]})",
        **({"pictures": f"at most {model.image_tokens:,} tokens each"} if model.image_tokens else {}),
        "asked": f"{evaluation.created}, {evaluation.where}",
        "data": ", ".join(evaluation.data),
        "generation": f"at most {settings.max_new_tokens:,} tokens, temperature {settings.temperature:g}, top-k {settings.top_k}, top-p "
        f"{settings.top_p:g}, repetition penalty {settings.repetition_penalty:g}, seed {settings.seed}",
    }
