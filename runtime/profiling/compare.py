"""Two profiles, figure by figure: what got slower or faster for certain, and which stage it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from echovlm_edge.runtime.errors import InvalidInput
from echovlm_edge.runtime.profiling.distributions import Change, changes
from echovlm_edge.runtime.profiling.schema import Profile, WorkloadFigures
from echovlm_edge.runtime.profiling.summary import STAGES, UNACCOUNTED, stage_seconds

LEAST_RUNS = 5  # of each: fewer have no spread to speak of
LEAST_SHARE = 0.005  # of the time: a smaller stage's change changes nothing
TOLERANCE = 0.02  # two processes differ by so much with nothing changed: where memory lies, how warm the chip is

Verdict = Literal["slower", "faster", "the same"]


@dataclass(frozen=True)
class FigureChange:
    """A figure's change, in seconds, and whether it changed for certain."""

    name: str
    change: Change
    verdict: Verdict


def compare(before: Profile, after: Profile, tolerance: float = TOLERANCE) -> dict[str, tuple[FigureChange, ...]]:
    """Every figure of the workloads that both have, by workload; stages in their order, then first token and the like.

    A figure is slower where its whole interval (`statistics.changes`: simultaneous, over all figures of all workloads) lies above
    `tolerance`, faster where it lies below minus `tolerance`.

    Raises:
        InvalidInput: no workload in common, or too few runs.
    """
    pairs = [
        (first, second) for first in before.workloads for second in after.workloads if _kind(first) == _kind(second)
    ]
    if not pairs:
        raise InvalidInput("The profiles have no workload in common: measure the same --workload for both.")
    few = min(len(figures.runs) for pair in pairs for figures in pair)
    if few < LEAST_RUNS:
        raise InvalidInput(f"A profile has {few} runs, a comparison needs {LEAST_RUNS}: measure with more --runs.")
    found = {}
    for first, second in pairs:
        runs = [_samples(figures) for figures in (first, second)]
        names = [
            name
            for name in runs[0]
            if name in runs[1] and max(_share(first, name), _share(second, name)) >= LEAST_SHARE
        ]
        # One level for all: a share of the error for each workload.
        level = 1 - 0.05 / len(pairs)
        changed = changes({name: runs[0][name] for name in names}, {name: runs[1][name] for name in names}, level)
        found[first.name] = tuple(
            FigureChange(name, change, _verdict(change, tolerance)) for name, change in changed.items()
        )
    return found


def slower(found: Mapping[str, Sequence[FigureChange]]) -> list[str]:
    """One sentence for each workload with a figure that got slower: the stages first, the one that costs the most leading."""
    sentences = []
    for workload, figures in found.items():
        worse = [figure for figure in figures if figure.verdict == "slower"]
        if not worse:
            continue
        stages = sorted(
            (f for f in worse if f.name in STAGES), key=lambda figure: figure.change.before - figure.change.after
        )
        named = ", ".join(
            f"{figure.name.replace('_', ' ')} {figure.change.ratio:+.1%}"
            f" ({figure.change.low:+.1%} to {figure.change.high:+.1%})"
            for figure in [*stages, *(f for f in worse if f.name not in STAGES)]
        )
        sentences.append(f"{workload} is slower: {named}.")
    return sentences


def _samples(figures: WorkloadFigures) -> dict[str, list[float]]:
    """Positive seconds by figure, a value for each run."""
    found = {
        name: [stage_seconds(run, name) for run in figures.runs]
        for name in STAGES
        if name in figures.stages and name != UNACCOUNTED
    }
    found["first_token"] = [run.first_token or 0.0 for run in figures.runs]
    found["per_token"] = [run.per_token or 0.0 for run in figures.runs]
    found["end_to_end"] = [run.seconds for run in figures.runs]
    return {name: seconds for name, seconds in found.items() if min(seconds) > 0}


def _share(figures: WorkloadFigures, name: str) -> float:
    return figures.stages[name].share if name in figures.stages else 1.0


def _kind(figures: WorkloadFigures) -> tuple[object, ...]:
    return (
        figures.name,
        figures.frames,
        figures.width,
        figures.height,
        figures.text_tokens,
        figures.new_tokens,
        figures.clients,
        figures.seen,
    )


def _verdict(change: Change, tolerance: float) -> Verdict:
    if change.low > tolerance:
        return "slower"
    return "faster" if change.high < -tolerance else "the same"
