"""Print estimates: the tables of one, or a row for each."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from echovlm_edge.export.devices import Reached
from echovlm_edge.export.estimate.estimating import Estimate
from echovlm_edge.export.estimate.roofline import WORKING_GB
from echovlm_edge.runtime.contracts.tables import figures, names, new_table, print_table, words
from echovlm_edge.runtime.profiling.workloads import Workload

COMPARED = 4096  # the context whose memory is compared
ESTIMATE = "ESTIMATE, not measured"


def show(found: Estimate, console: Console) -> None:
    """Print the tables of one estimate."""
    title = f"{ESTIMATE}: {found.precision} on {found.device} (target {found.target})"
    stages = new_table(
        title,
        names("workload"),
        names("stage"),
        figures("GB\nread"),
        figures("T oper-\nations"),
        words("bound by"),
        figures("at the\nbound, s"),
        figures("expected,\ns"),
    )
    for stage in found.stages:
        cells = (f"{stage.read_gb:,.1f}", f"{stage.tera_operations:,.2f}", stage.bound)
        stages.add_row(
            stage.workload,
            stage.stage,
            *cells,
            f"{stage.roofline_seconds:,.3f}",
            f"{stage.expected_seconds:,.3f}",
        )
    outcomes = new_table(
        "", names("workload"), figures("first token,\ns"), figures("tokens/s"), figures("whole answer,\ns")
    )
    for outcome in found.outcomes:
        first, speed = f"{outcome.first_token_seconds:,.2f}", f"{outcome.tokens_per_second:,.1f}"
        outcomes.add_row(outcome.workload, first, speed, f"{outcome.whole_seconds:,.1f}")
    memory = new_table("", figures("context,\ntokens"), figures(f"memory, GB\n(of {found.usable_gb:.1f})"), words(""))
    for tokens, size in found.memory_gb.items():
        memory.add_row(f"{tokens:,}", f"{size:,.1f}", "" if size <= found.usable_gb else "does not fit")
    for table in (stages, outcomes, memory):
        print_table(console, table)
    console.print(_foot(found.reached), soft_wrap=True, highlight=False)


def _foot(reached: Reached) -> str:
    source = "measured on such a machine" if reached.measured else "assumed"
    return (
        f"{ESTIMATE}. Expected: {reached.bandwidth:.0%} of the bandwidth, {reached.images:.0%} of the arithmetic for images, "
        f"{reached.decoder:.0%} for prompts ({source}). Memory includes {WORKING_GB} GB for the device's context and activations "
        "(assumed)."
    )


def compare(found: list[Estimate], console: Console, left_out: Sequence[Workload] = ()) -> None:
    """Print one row for each target; not of the workloads `left_out`, for which it has no room."""
    hidden = {workload.name for workload in left_out}
    table = new_table(
        f"{ESTIMATE}: first token, s / tokens a second",
        names("target"),
        *(figures(outcome.workload) for outcome in found[0].outcomes if outcome.workload not in hidden),
        figures("GB at\n4,096"),
        figures("of"),
    )
    for each in found:
        cells = [
            f"{outcome.first_token_seconds:.2f} / {outcome.tokens_per_second:.1f}"
            for outcome in each.outcomes
            if outcome.workload not in hidden
        ]
        cells = cells if each.fits else ["does not fit"] + [""] * (len(cells) - 1)
        size = each.memory_gb.get(COMPARED, max(each.memory_gb.values()))
        table.add_row(each.target, *cells, f"{size:.1f}", f"{each.usable_gb:.1f}")
    print_table(console, table)
