"""Draw estimates: time by stage for each workload, memory by context length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from echovlm_edge.export.estimate.estimating import IMAGES, Estimate
from echovlm_edge.export.estimate.printed import ESTIMATE
from echovlm_edge.runtime.contracts.errors import NotPossibleHere


def plot(found: Sequence[Estimate], output: Path) -> None:
    """Draw a row for each estimate into a file, of the kind that its name ends in.

    Raises:
        NotPossibleHere: matplotlib is missing, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise NotPossibleHere("--plot needs matplotlib: pip install matplotlib.") from None
    figure = Figure(figsize=(11, 0.6 + 2.6 * len(found)), layout="constrained")
    figure.suptitle(ESTIMATE)
    grid = figure.subplots(len(found), 2, squeeze=False)
    for (times, memory), each in zip(grid, found, strict=True):
        names = [outcome.workload for outcome in each.outcomes]
        left = dict.fromkeys(names, 0.0)
        for stage in (IMAGES, "prefill", "decode"):
            seconds = {entry.workload: entry.expected_seconds for entry in each.stages if entry.stage == stage}
            widths = [seconds.get(name, 0.0) for name in names]
            times.barh(names, widths, left=[left[name] for name in names], label=stage)
            left = {name: left[name] + width for name, width in zip(names, widths, strict=True)}
        times.invert_yaxis()
        times.set_xlabel("expected seconds")
        times.set_title(f"{each.target}: {each.precision} on {each.device}", fontsize="medium")
        times.legend()
        memory.plot(list(each.memory_gb), list(each.memory_gb.values()), marker="o")
        memory.axhline(each.usable_gb, linestyle="--", color="gray", label=f"usable {each.usable_gb:.1f} GB")
        memory.set_xscale("log", base=2)
        memory.set_ylim(bottom=0)
        memory.set_xlabel("context, tokens")
        memory.set_ylabel("GB")
        memory.legend()
    try:
        figure.savefig(output, dpi=110)
    except (OSError, ValueError) as error:
        raise NotPossibleHere(f"The plot {output} cannot be written ({error}).") from None
