"""Parse and check the bounds that integrators assert: on one profile, `ttft_p95<800ms`, `W7.end_to_end_median<=90s`, `tokens_per_second>4`;
on two, `decode_change<5%`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.contracts.stages import ORDER, TOTALS
from echovlm_edge.runtime.profiling.comparison.compare import FigureChange, described
from echovlm_edge.runtime.profiling.distributions import PERCENTILES, Distribution
from echovlm_edge.runtime.profiling.schema import Profile, WorkloadFigures

_BOUND = re.compile(r"\s*(?:([\w-]+)\.)?(\w+)\s*(<=|>=|<|>)\s*(-?[0-9.]+)\s*([A-Za-z%]*)\s*")
_RELATIONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "GB": 1e9, "MB": 1e6, "J": 1.0, "W": 1.0, "%": 1e-2, "": 1.0}
_SHORT = {"ttft": "first_token", "tpot": "per_token", "gaps": "between_tokens"}  # the field's abbreviations
_IN_PROFILE = {name: short for short, name in _SHORT.items()}
_TIMES = (*_SHORT, *TOTALS, *ORDER)
_TIME_UNITS = ("s", "ms", "us")
EXAMPLE = "'ttft_p95<800ms'"
CHANGE, EVERY = "change", "every figure"


@dataclass(frozen=True)
class Bound:
    """A figure of one workload, or of each, and what it must keep to; the limit in seconds, bytes, joules, watts or shares."""

    text: str
    workload: str | None
    figure: str
    relation: str
    limit: float
    unit: str

    def broken_by(self, profile: Profile) -> list[str]:
        """Return a sentence for each workload that breaks it.

        Raises:
            InvalidInput: the profile lacks the workload or the figure.
        """
        chosen = [figures for figures in profile.workloads if self.workload in (None, figures.name)]
        if not chosen:
            measured = ", ".join(figures.name for figures in profile.workloads)
            raise InvalidInput(f"The bound {self.text} is for a workload that was not measured: there are {measured}.")
        broken = []
        for figures in chosen:
            value = self._value(figures)
            if not _RELATIONS[self.relation](value, self.limit):
                shown = f"{value / _UNITS[self.unit]:.4g} {self.unit}".strip()
                broken.append(f"{figures.name} breaks {self.text}: it is {shown}.")
        return broken

    def _value(self, figures: WorkloadFigures) -> float:
        name, _, percentile = self.figure.rpartition("_")
        if self.figure == "tokens_per_second":
            return figures.tokens_per_second
        if self.figure in ("energy", "power"):
            by_component = figures.energy.joules if self.figure == "energy" else figures.energy.watts
            if not by_component:
                raise InvalidInput(f"{self.text} cannot be judged: the energy is unknown ({figures.energy.unknown}).")
            return sum(by_component.values())
        if self.figure.startswith("memory_"):
            kind = self.figure.removeprefix("memory_")
            if kind not in figures.memory:
                kinds = (
                    ", ".join(f"memory_{kind}" for kind in figures.memory) or "none, as a server's memory is its own"
                )
                raise InvalidInput(f"{self.text} names no memory that was measured: there is {kinds}.")
            return figures.memory[kind]
        if self.figure.startswith("share_"):
            return figures.stages[name].share if (name := self.figure.removeprefix("share_")) in figures.stages else 0.0
        stage = figures.stages.get(name)
        distribution: Distribution | None = (
            stage.seconds if stage else getattr(figures, _IN_PROFILE.get(name, name), None)
        )
        if distribution is None:
            raise InvalidInput(f"{self.text} cannot be judged: {figures.name} has no {name}.")
        return float(getattr(distribution, percentile))


@dataclass(frozen=True)
class ChangeBound:
    """What the change of a figure from one profile to another must keep to, or of every figure; the limit is a share."""

    text: str
    workload: str | None
    figure: str
    relation: str
    limit: float

    def of(self, found: Mapping[str, Sequence[FigureChange]]) -> dict[str, list[FigureChange]]:
        """Select the changes that it is about, by workload.

        Raises:
            InvalidInput: the comparison lacks the workload or the figure.
        """
        if self.workload not in (None, *found):
            compared = ", ".join(found)
            raise InvalidInput(f"The bound {self.text} is for a workload that was not compared: there are {compared}.")
        chosen = {}
        for workload in [self.workload] if self.workload else found:
            chosen[workload] = [each for each in found[workload] if self.figure in (each.name, EVERY)]
            if not chosen[workload]:
                raise InvalidInput(
                    f"{self.text} cannot be judged: the comparison of {workload} has no {self.figure}, or too little of it."
                )
        return chosen

    def holds(self, figure: FigureChange) -> bool | None:
        """Check whether the bound holds for certain; returns None where the limit is inside the interval."""
        ends = [_RELATIONS[self.relation](end, self.limit) for end in (figure.change.low, figure.change.high)]
        return ends[0] if ends[0] == ends[1] else None


@dataclass(frozen=True)
class Judged:
    """Sentences on the bounds that do not hold for certain."""

    broken: tuple[str, ...]
    unknown: tuple[str, ...]


def parse(text: str) -> Bound | ChangeBound:
    """Parse a bound from its text.

    Raises:
        InvalidInput: it is not a bound; the sentence shows how to write one.
    """
    match = _BOUND.fullmatch(text)
    if not match:
        raise InvalidInput(f"{text} is no bound: write for example {EXAMPLE}.")
    workload, figure, relation, number, unit = match.groups()
    name, _, statistic = figure.rpartition("_")
    change = statistic == CHANGE and name in ("", *_TIMES)
    time = name in _TIMES and statistic in (*PERCENTILES, "mean")
    other = figure in ("tokens_per_second", "energy", "power") or figure.startswith(("memory_", "share_"))
    if not (change or time or other):
        raise InvalidInput(
            f"{text} names no figure: it is one of {', '.join(_TIMES)} with _median, _mean, _p90, _p95, _p99, _max or _change, "
            "or tokens_per_second, energy, power, memory_resident, share_STAGE, change."
        )
    if unit not in _UNITS or time != (unit in _TIME_UNITS) or (change and unit != "%"):
        raise InvalidInput(
            f"{text} has the wrong unit: times take s, ms or us, memory GB or MB, changes %; for example {EXAMPLE}."
        )
    try:
        limit = float(number) * _UNITS[unit]
    except ValueError:
        raise InvalidInput(f"{text} has no number: write for example {EXAMPLE}.") from None
    if change:
        return ChangeBound(text, workload, _SHORT.get(name, name) or EVERY, relation, limit)
    return Bound(text, workload, figure, relation, limit, unit)


def of_one_profile(bounds: Sequence[Bound | ChangeBound]) -> list[Bound]:
    """Return the bounds by which one profile can be judged.

    Raises:
        InvalidInput: one is about a change.
    """
    for bound in bounds:
        if isinstance(bound, ChangeBound):
            raise InvalidInput(f"{bound.text} compares two profiles: give it to echovlm-profile compare.")
    return [bound for bound in bounds if isinstance(bound, Bound)]


def broken(profile: Profile, bounds: Sequence[Bound]) -> list[str]:
    """List a sentence for each bound and workload that breaks it, by the measured figures."""
    return [sentence for bound in bounds for sentence in bound.broken_by(profile)]


def judged(found: Mapping[str, Sequence[FigureChange]], bounds: Sequence[ChangeBound]) -> Judged:
    """Judge bounds on changes, each by the whole interval: an undecided one is neither kept nor broken."""
    sentences: dict[bool | None, list[str]] = {False: [], None: []}
    for bound in bounds:
        for workload, figures in bound.of(found).items():
            for verdict, found_so in sentences.items():
                if chosen := [described(figure) for figure in figures if bound.holds(figure) is verdict]:
                    named = ", ".join(chosen)
                    found_so.append(
                        f"{workload}: {bound.text} cannot be decided for {named}: measure more runs."
                        if verdict is None
                        else f"{workload} breaks {bound.text}: {named}."
                    )
    return Judged(tuple(sentences[False]), tuple(sentences[None]))
