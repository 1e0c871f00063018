"""A profile, and a comparison of two, as tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from echovlm_edge.runtime.profiling.compare import FigureChange
from echovlm_edge.runtime.profiling.distributions import Distribution
from echovlm_edge.runtime.profiling.schema import Profile, WorkloadFigures

SHOWN_OPERATORS = 12


def tables(profile: Profile) -> Iterator[RenderableType]:
    """A table for each workload, the roofline, the slowest operators."""
    for figures in profile.workloads:
        yield _stages(profile, figures)
        yield Text("\n".join(_lines(figures)))
    if profile.ceilings:
        yield _roofline(profile)
    if profile.operators:
        yield _operators(profile)


def _stages(profile: Profile, figures: WorkloadFigures) -> Table:
    what = f"{figures.name}: {figures.frames} x {figures.width}x{figures.height}, {figures.clients} at a time"
    bundle = profile.bundle
    table = Table(box=box.SIMPLE, title=f"{what}; {bundle.model}, {bundle.precision}, {profile.conditions.where}")
    for column in ("milliseconds", "median", "p90", "p95", "p99", "max", "share"):
        table.add_column(column, justify="left" if column == "milliseconds" else "right")
    for name, stage in figures.stages.items():
        table.add_row(name.replace("_", " "), *_cells(stage.seconds), f"{stage.share:.1%}")
    table.add_section()
    totals = {
        "first token": figures.ttft,
        "per token": figures.tpot,
        "between tokens": figures.gaps,
        "end to end": figures.end_to_end,
    }
    for name, distribution in totals.items():
        if distribution:
            table.add_row(name, *_cells(distribution), "")
    return table


def _cells(distribution: Distribution) -> list[str]:
    values = (distribution.median, distribution.p90, distribution.p95, distribution.p99, distribution.max)
    return [f"{value * 1e3:,.2f}" for value in values]


def _lines(figures: WorkloadFigures) -> Iterator[str]:
    run, energy = figures.runs[0], figures.energy
    least = min(run.accounted for run in figures.runs)
    yield (
        f"  {len(figures.runs)} runs, {run.prompt_tokens} prompt tokens ({run.image_tokens} of images, {run.reused_tokens} "
        f"known before), {run.generated_tokens} written; {figures.tokens_per_second:.1f} tokens/s; stages account for "
        f"{least:.1%} or more of every run"
    )
    if figures.memory:
        yield "  memory at most: " + ", ".join(
            f"{kind.replace('_', ' ')} {size / 1e6:,.0f} MB" for kind, size in figures.memory.items()
        )
    if energy.unknown:
        yield f"  energy unknown: {energy.unknown}"
    for name, joules in energy.joules.items():
        yield f"  energy ({energy.source}): {name} {joules:.2f} J a request, {energy.watts[name]:.1f} W"


def _roofline(profile: Profile) -> Table:
    assert profile.ceilings
    read, multiply = profile.ceilings.read_gbps, profile.ceilings.int8_gops
    table = Table(
        box=box.SIMPLE, title=f"roofline: this machine reads {read:.1f} GB/s, multiplies {multiply:,.0f} GOP/s"
    )
    for column in ("workload", "stage", "GB/s", "of it", "GOP/s", "of it "):
        table.add_column(column, justify="left" if column in ("workload", "stage") else "right")
    for figures in profile.workloads:
        for point in figures.roofline:
            cells = (
                f"{point.gbps:.2f}",
                f"{point.gbps / read:.0%}",
                f"{point.gops:.1f}",
                f"{point.gops / multiply:.0%}",
            )
            table.add_row(figures.name, point.stage, *cells)
    return table


def _operators(profile: Profile) -> Table:
    table = Table(box=box.SIMPLE, title=f"the {SHOWN_OPERATORS} slowest operators, in requests of their own")
    for column in ("part", "layer", "operator", "calls", "ms a call", "share"):
        table.add_column(column, justify="right" if column in ("calls", "ms a call", "share") else "left")
    total = sum(operator.seconds for operator in profile.operators)
    for operator in sorted(profile.operators, key=lambda operator: -operator.seconds)[:SHOWN_OPERATORS]:
        share = f"{operator.seconds / total:.1%}"
        row = (f"{operator.part}, {operator.phase}", operator.layer, operator.kind, str(operator.calls))
        table.add_row(*row, f"{operator.seconds / operator.calls * 1e3:,.3f}", share)
    return table


def comparison(workload: str, found: Sequence[FigureChange]) -> Table:
    """What changed in a workload: the verdict for each figure."""
    table = Table(
        box=box.SIMPLE, title=f"{workload}: the second beside the first, intervals that hold together; milliseconds"
    )
    for column in ("figure", "before", "after", "change", "95 % interval", ""):
        table.add_column(column, justify="left" if column in ("figure", "") else "right", no_wrap=True)
    for figure in found:
        change = figure.change
        row = (f"{figure.change.before * 1e3:,.2f}", f"{figure.change.after * 1e3:,.2f}", f"{change.ratio:+.1%}")
        style = {"slower": "red", "faster": "green"}.get(figure.verdict)
        table.add_row(
            figure.name.replace("_", " "), *row, f"{change.low:+.1%} to {change.high:+.1%}", figure.verdict, style=style
        )
    return table
