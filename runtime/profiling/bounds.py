"""Bounds that integrators assert: `ttft_p95<800ms`, `W7.end_to_end_median<=90s`, `tokens_per_second>4`."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass

from echovlm_edge.runtime.errors import InvalidInput
from echovlm_edge.runtime.profiling.distributions import PERCENTILES, Distribution
from echovlm_edge.runtime.profiling.schema import Profile, WorkloadFigures
from echovlm_edge.runtime.profiling.summary import STAGES

_BOUND = re.compile(r"\s*(?:([\w-]+)\.)?(\w+)\s*(<=|>=|<|>)\s*([0-9.]+)\s*([A-Za-z%]*)\s*")
_RELATIONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "GB": 1e9, "MB": 1e6, "J": 1.0, "W": 1.0, "%": 1e-2, "": 1.0}
_TIMES = ("ttft", "tpot", "gaps", "end_to_end", *STAGES)
_TIME_UNITS = ("s", "ms", "us")
EXAMPLE = "'ttft_p95<800ms'"


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
        """A sentence for each workload that breaks it.

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
            told = figures.energy.joules if self.figure == "energy" else figures.energy.watts
            if not told:
                raise InvalidInput(f"{self.text} cannot be judged: the energy is unknown ({figures.energy.unknown}).")
            return sum(told.values())
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
        distribution: Distribution | None = stage.seconds if stage else getattr(figures, name, None)
        if distribution is None:
            raise InvalidInput(f"{self.text} cannot be judged: {figures.name} has no {name}.")
        return float(getattr(distribution, percentile))


def parse(text: str) -> Bound:
    """A bound as it is written.

    Raises:
        InvalidInput: it is none; the sentence says what is.
    """
    match = _BOUND.fullmatch(text)
    if not match:
        raise InvalidInput(f"{text} is no bound: write for example {EXAMPLE}.")
    workload, figure, relation, number, unit = match.groups()
    name, _, percentile = figure.rpartition("_")
    time = name in _TIMES and percentile in (*PERCENTILES, "mean")
    other = figure in ("tokens_per_second", "energy", "power") or figure.startswith(("memory_", "share_"))
    if not (time or other):
        raise InvalidInput(
            f"{text} names no figure: it is one of {', '.join(_TIMES)} with _median, _mean, _p90, _p95, _p99 or _max, or "
            "tokens_per_second, energy, power, memory_resident, share_STAGE."
        )
    if unit not in _UNITS or time != (unit in _TIME_UNITS):
        raise InvalidInput(
            f"{text} has the wrong unit: times take s, ms or us, memory GB or MB; for example {EXAMPLE}."
        )
    try:
        limit = float(number) * _UNITS[unit]
    except ValueError:
        raise InvalidInput(f"{text} has no number: write for example {EXAMPLE}.") from None
    return Bound(text, workload, figure, relation, limit, unit)


def broken(profile: Profile, bounds: Sequence[Bound]) -> list[str]:
    """A sentence for each bound and workload that breaks it."""
    return [sentence for bound in bounds for sentence in bound.broken_by(profile)]
