"""Show a profile, or a comparison of two, as tables in the terminal: 80 columns hold every figure in full."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from echovlm_edge.runtime.contracts.stages import words
from echovlm_edge.runtime.profiling.comparison.compare import FigureChange, Margins, percent, signed, summary
from echovlm_edge.runtime.profiling.distributions import Distribution
from echovlm_edge.runtime.profiling.schema import Profile, WorkloadFigures

SHOWN_OPERATORS = 12
STYLES = {"slower": "red", "faster": "green", "cannot tell": "dim"}


def tables(profile: Profile) -> Iterator[RenderableType]:
    """Yield a table for each workload, the roofline, the slowest operators."""
    for figures in profile.workloads:
        yield _title(
            f"{figures.name}: {figures.frames} x {figures.width}x{figures.height}, {figures.clients} at a time; "
            f"{profile.bundle.model}, {profile.bundle.precision}, {profile.conditions.where}"
        )
        yield _stages(figures)
        yield from (Padding(Text(line), (0, 0, 0, 2)) for line in _lines(figures))
    if profile.ceilings:
        read, multiply = profile.ceilings.read_gbps, profile.ceilings.int8_gops
        yield _title(f"Roofline: this machine reads {read:.1f} GB/s and multiplies {multiply:,.0f} GOP/s at most")
        yield _roofline(profile, read, multiply)
    if profile.operators:
        yield _title(f"The {SHOWN_OPERATORS} slowest operators, measured in requests of their own")
        yield _operators(profile)


def comparison(workload: str, found: Sequence[FigureChange], margins: Margins) -> Iterator[RenderableType]:
    """Yield what changed in a workload: a sentence that sums up, then the verdict for each figure."""
    yield Text(f"{workload}: {summary(found, margins)}", style="bold")
    table = _table(("figure",), ("before, ms", "after, ms", "change", "95% interval", "sees from"), ("verdict",))
    for figure in found:
        change = figure.change
        table.add_row(
            words(figure.name),
            milliseconds(change.before),
            milliseconds(change.after),
            signed(change.ratio),
            f"{signed(change.low).rstrip('%')} to {signed(change.high)}",
            signed(figure.smallest),
            figure.verdict,
            style=STYLES.get(figure.verdict),
        )
    yield Padding(table, (0, 0, 1, 0))


def how_to_read(margins: Margins) -> str:
    """Explain the verdicts in three sentences."""
    return (
        f"Slower or faster: the whole interval is beyond {percent(margins.tolerance)}. The same: the whole interval is within "
        f"{percent(margins.same)}. Sees from: the smallest slowdown that these runs find in 8 tries of 10; about "
        "four times the runs halve it."
    )


def milliseconds(seconds: float) -> str:
    """Format seconds as milliseconds, to the hundredth below 100 of them, to the tenth below 1,000."""
    value = seconds * 1e3
    return f"{value:,.2f}" if value < 99.995 else f"{value:,.1f}" if value < 999.95 else f"{value:,.0f}"


def _table(names: Sequence[str], figures: Sequence[str], last: Sequence[str] = (), width: int = 0) -> Table:
    """Make a table of columns of words, which may wrap, around columns of figures, which never do and have at least that width."""
    table = Table(box=box.SIMPLE, padding=0, show_edge=False)
    for name in names:
        table.add_column(name, overflow="fold")
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True, min_width=width)
    for name in last:
        table.add_column(name, no_wrap=True)
    return table


def _title(text: str) -> RenderableType:
    return Padding(Text(text, style="bold"), (1, 0, 0, 0))


def _stages(figures: WorkloadFigures) -> Table:
    table = _table(("milliseconds",), ("median", "p90", "p95", "p99", "max", "share"), width=8)
    for name, stage in figures.stages.items():
        table.add_row(words(name), *_cells(stage.seconds), f"{stage.share:.1%}")
    table.add_section()
    totals = {
        "first_token": figures.ttft,
        "per_token": figures.tpot,
        "between_tokens": figures.gaps,
        "end_to_end": figures.end_to_end,
    }
    for name, distribution in totals.items():
        if distribution:
            table.add_row(words(name), *_cells(distribution), "")
    return table


def _cells(distribution: Distribution) -> list[str]:
    values = (distribution.median, distribution.p90, distribution.p95, distribution.p99, distribution.max)
    return [milliseconds(value) for value in values]


def _lines(figures: WorkloadFigures) -> Iterator[str]:
    run, energy = figures.runs[0], figures.energy
    least = min(run.accounted for run in figures.runs)
    yield (
        f"{len(figures.runs)} runs: {run.prompt_tokens} prompt tokens ({run.image_tokens} of images, {run.reused_tokens} cached), "
        f"{run.generated_tokens} written; {figures.tokens_per_second:,.1f} tokens/s. The stages explain {least:.1%} or more of "
        "every run."
    )
    if run.saved_steps and run.tokens_per_step:
        yield f"drafts: {run.tokens_per_step:.2f} tokens a step, {run.saved_steps} of {run.generated_tokens - 1} steps saved"
    if figures.memory:
        yield "memory at most: " + ", ".join(
            f"{kind.replace('_', ' ')} {size / 1e6:,.0f} MB" for kind, size in figures.memory.items()
        )
    if energy.unknown:
        yield f"energy unknown: {energy.unknown}"
    for name, joules in energy.joules.items():
        yield f"energy ({energy.source}): {name} {joules:,.2f} J a request, {energy.watts[name]:,.1f} W"


def _roofline(profile: Profile, read: float, multiply: float) -> Table:
    table = _table(("workload", "stage"), ("GB/s", "of it", "GOP/s", "of it "), width=8)
    for figures in profile.workloads:
        for point in figures.roofline:
            cells = (
                f"{point.gbps:,.2f}",
                f"{point.gbps / read:.0%}",
                f"{point.gops:,.1f}",
                f"{point.gops / multiply:.0%}",
            )
            table.add_row(figures.name, words(point.stage), *cells)
    return table


def _operators(profile: Profile) -> Table:
    table = _table(("stage", "layer", "operator"), ("calls", "ms a call", "share"))
    total = sum(operator.seconds for operator in profile.operators)
    for operator in sorted(profile.operators, key=lambda operator: -operator.seconds)[:SHOWN_OPERATORS]:
        table.add_row(
            operator.stage,
            operator.layer,
            operator.kind,
            f"{operator.calls:,}",
            f"{operator.seconds / operator.calls * 1e3:,.3f}",
            f"{operator.seconds / total:.1%}",
        )
    return table
