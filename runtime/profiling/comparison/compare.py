"""Compare two profiles, figure by figure: what got slower, got faster or stayed the same for certain, and what is undecided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.contracts.stages import ORDER, STAGES, UNACCOUNTED, words
from echovlm_edge.runtime.profiling.distributions import Change, changes
from echovlm_edge.runtime.profiling.schema import Profile, WorkloadFigures

LEAST_RUNS = 5  # of each: fewer have no spread to speak of
LEAST_SHARE = 0.005  # of the time: a smaller stage's change changes nothing
TOLERANCE = 0.02  # two processes differ by so much with nothing changed: where memory lies, how warm the chip is
# More than twice the tolerance, and what ten runs that scatter by 2 % or twenty by 3 % can show: a margin of 2 % would take 60.
SAME = 0.05

Verdict = Literal["slower", "faster", "the same", "cannot tell"]


@dataclass(frozen=True)
class Margins:
    """The limits of what counts as a change and as no change, as shares.

    Attributes:
        tolerance: a change that is beyond it for certain is one.
        same: a figure that changed by no more than this for certain is the same.

    Raises:
        InvalidInput: `same` is below `tolerance`.
    """

    tolerance: float = TOLERANCE
    same: float = SAME

    def __post_init__(self) -> None:
        """Refuse margins by which a figure could be slower and the same at once."""
        if not 0 <= self.tolerance <= self.same:
            raise InvalidInput(
                f"The margin of {percent(self.same)} is below the tolerance of {percent(self.tolerance)}: a figure could be "
                "slower and the same at once."
            )


DEFAULT = Margins()


@dataclass(frozen=True)
class FigureChange:
    """A figure's change, in seconds, and its verdict.

    Attributes:
        name: a stage's or a total's: see `stages.words`.
        change: with its interval.
        verdict: see `verdict`.
        smallest: the smallest slowdown, as a share, that these runs find in 8 tries of 10.
    """

    name: str
    change: Change
    verdict: Verdict
    smallest: float


def verdict(change: Change, margins: Margins) -> Verdict:
    """Judge a change by where its whole interval lies.

    It is the same only where the interval lies within the margin on both sides: a test of equivalence (Schuirmann 1987, two
    one-sided tests), which runs that are few or uneven do not pass. No sign of a change is not the same as no change.
    """
    if change.low > margins.tolerance:
        return "slower"
    if change.high < -margins.tolerance:
        return "faster"
    return "the same" if -margins.same <= change.low and change.high <= margins.same else "cannot tell"


def compare(before: Profile, after: Profile, margins: Margins = DEFAULT) -> dict[str, tuple[FigureChange, ...]]:
    """Compare every figure of the workloads that both have, by workload; stages in chronological order, then the totals.

    The confidence level of the intervals (`distributions.changes`) covers all figures of all workloads together.

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
            FigureChange(name, change, verdict(change, margins), change.smallest(margins.tolerance))
            for name, change in changed.items()
        )
    return found


def summary(figures: Sequence[FigureChange], margins: Margins = DEFAULT) -> str:
    """Summarise a workload in a sentence: `2 figures got slower, 1 got faster, 3 are the same within 5%, 4 cannot be told apart: …`."""
    phrases = {
        "slower": "got slower",
        "faster": "got faster",
        "the same": f"are the same within {percent(margins.same)}",
        "cannot tell": "cannot be told apart",
    }
    counts = {kind: number for kind in phrases if (number := sum(figure.verdict == kind for figure in figures))}
    parts: list[str] = []
    for kind, number in counts.items():
        count = f"{number} figure{'s' * (number > 1)}" if not parts else str(number)
        if number == len(figures):
            if kind == "cannot tell":
                return f"None of the {number} figures can be told apart: measure more runs."
            count = f"All {number} figures" if number > 1 else "The one figure"
        parts.append(f"{count} {phrases[kind] if number > 1 else phrases[kind].replace('are ', 'is ')}")
    return ", ".join(parts) + (": measure more runs." if "cannot tell" in counts else ".")


def slower(found: Mapping[str, Sequence[FigureChange]]) -> list[str]:
    """Return a sentence for each workload with a figure that got slower: the stages first, the one that costs the most leading."""
    sentences = []
    for workload, figures in found.items():
        worse = [figure for figure in figures if figure.verdict == "slower"]
        if not worse:
            continue
        stages = sorted(
            (f for f in worse if f.name in STAGES), key=lambda figure: figure.change.before - figure.change.after
        )
        named = ", ".join(described(figure) for figure in [*stages, *(f for f in worse if f.name not in STAGES)])
        sentences.append(f"{workload} is slower: {named}.")
    return sentences


def described(figure: FigureChange) -> str:
    """Describe a change in words: vision +9.8% (+6.1% to +13.6%)."""
    change = figure.change
    return f"{words(figure.name)} {signed(change.ratio)} ({signed(change.low)} to {signed(change.high)})"


def signed(share: float) -> str:
    """Format a change in at most 6 characters: +9.8%, -20.6%, +140%; above tenfold >+999%."""
    if share >= 9.995:
        return ">+999%"
    return f"{share:+.1%}" if abs(share) < 0.9995 else f"{share:+.0%}"


def percent(share: float) -> str:
    """Format a share without a sign and without needless decimals."""
    return f"{share * 100:.3g}%"


def _samples(figures: WorkloadFigures) -> dict[str, list[float]]:
    """Collect positive seconds by figure, a value for each run."""
    found = {
        name: [run.stage_seconds(name) for run in figures.runs]
        for name in ORDER
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
