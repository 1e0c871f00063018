"""Compute figures with their intervals, by group, and the differences of two runs, by resampling rows (bootstrap)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.evaluation.schema import Figure, ScoredRow
from echovlm_edge.runtime.evaluation.scoring.metric import Metric, Statistics

RESAMPLES, SEED, LEVEL = 1000, 0, 0.95
ALL = "all"
WITHOUT_HISTORY = "without earlier turns"


def groups_of(row: ScoredRow) -> tuple[str, ...]:
    """Name the groups that a row belongs to."""
    turns = (WITHOUT_HISTORY,) if "earlier turns" in row.not_sent else ()
    return (ALL, f"task: {row.task.value}", f"region: {row.region}", f"language: {row.language}", *turns)


def figures(rows: Sequence[ScoredRow], metrics: Sequence[Metric]) -> tuple[Figure, ...]:
    """Compute each metric over each group that has rows with it."""
    found = []
    for group, members in grouped(rows).items():
        for metric in metrics:
            statistics = [row.statistics[metric.key] for row in members if metric.key in row.statistics]
            if statistics and (figure := _figure(group, metric, statistics)):
                found.append(figure)
    return tuple(found)


def by_place(found: Iterable[Figure]) -> dict[tuple[str, str], Figure]:
    """Arrange figures by metric and group."""
    return {(figure.metric, figure.group): figure for figure in found}


def grouped(rows: Sequence[ScoredRow]) -> dict[str, list[ScoredRow]]:
    """Collect rows by group: all first, then tasks, regions and languages by name."""
    found: dict[str, list[ScoredRow]] = {}
    for row in rows:
        for group in groups_of(row):
            found.setdefault(group, []).append(row)
    kinds = {ALL: 0, "task": 1, "region": 2, "language": 3}
    return dict(sorted(found.items(), key=lambda item: (kinds.get(item[0].partition(":")[0], 4), item[0])))


def _figure(group: str, metric: Metric, statistics: Sequence[Statistics]) -> Figure | None:
    sums = np.array(statistics)
    value = float(metric.value(sums.sum(axis=0)))
    if np.isnan(value):  # nothing was asked
        return None
    low = high = None
    if len(sums) > 1:
        edge = (1 - LEVEL) / 2
        low, high = (float(end) for end in np.nanquantile(metric.value(resampled(sums)), (edge, 1 - edge)))
    return Figure(group, metric.key, len(sums), value, low, high)


def resampled(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums of each resample of rows, float64 [RESAMPLES, k]; those of as many rows take the same rows.

    Args:
        sums: each row's statistics, float64 [rows, k].
    """
    chunks = np.array_split(_weights(len(sums)), 1 + len(sums) // 1000)  # each is converted to float64
    return np.concatenate([chunk @ sums for chunk in chunks])


@lru_cache(maxsize=4)
def _weights(rows: int) -> NDArray[np.uint16]:
    """Return how often each row occurs in each resample, uint16 [RESAMPLES, rows]."""
    random = np.random.default_rng(SEED)
    drawn = [np.bincount(random.integers(0, rows, rows), minlength=rows) for _ in range(RESAMPLES)]
    return np.array(drawn, np.uint16)


@dataclass(frozen=True)
class Difference:
    """How a metric differs between two runs over the rows that both have.

    Attributes:
        metric: which.
        group: of rows.
        rows: how many are compared.
        before: the first run's figure, 0 to 100.
        after: the second run's.
        low: where the interval of the difference begins; the intervals of all differences hold at once.
        high: where it ends.
    """

    metric: Metric
    group: str
    rows: int
    before: float
    after: float
    low: float
    high: float

    @property
    def change(self) -> float:
        """The second figure less the first."""
        return self.after - self.before

    @property
    def verdict(self) -> str:
        """`better` or `worse` if the interval leaves zero out, else `cannot tell`; `the same` without any difference."""
        if self.low == self.high == 0:
            return "the same"
        if self.low <= 0 <= self.high:
            return "cannot tell"
        return "better" if (self.low > 0) == self.metric.more_is_better else "worse"


Pair = tuple[ScoredRow, ScoredRow]


def differences(
    pairs: Mapping[str, Sequence[Pair]], metrics: Sequence[Metric], select: Callable[[Metric, str], bool]
) -> tuple[Difference, ...]:
    """Compare two runs by a paired bootstrap: each resample takes the same rows of both.

    The intervals are simultaneous: with a probability of 95 % all of them hold (max-t bootstrap, Westfall & Young 1993): the largest
    studentized deviation over all figures gives the one factor for their standard errors.

    Args:
        pairs: each row as both runs answered it, by group.
        metrics: those of both runs.
        select: whether a metric is compared in a group.
    """
    found = [
        measured
        for group, members in pairs.items()
        for metric in metrics
        if select(metric, group) and (measured := _measured(group, metric, members))
    ]
    if not found:
        return ()
    deviations = np.array([deviation for _, deviation in found])  # [figures, RESAMPLES]
    errors = deviations.std(axis=1, keepdims=True)
    moving = errors[:, 0] > 1e-12
    largest = np.abs(deviations[moving] / errors[moving]).max(axis=0) if moving.any() else np.zeros(1)
    reach = float(np.quantile(largest, LEVEL)) * errors[:, 0] * moving
    return tuple(
        Difference(metric, group, rows, before, after, after - before - float(far), after - before + float(far))
        for ((metric, group, rows, before, after), _), far in zip(found, reach, strict=True)
    )


def _measured(
    group: str, metric: Metric, members: Sequence[Pair]
) -> tuple[tuple[Metric, str, int, float, float], NDArray[np.float64]] | None:
    """Return both figures of the rows that have the metric in both runs, and the resamples' deviations from their difference."""
    both = [
        (one.statistics[metric.key], other.statistics[metric.key])
        for one, other in members
        if metric.key in one.statistics and metric.key in other.statistics
    ]
    if len(both) < 2:
        return None
    first, second = (np.array(sums) for sums in zip(*both, strict=True))
    before, after = (float(metric.value(sums.sum(axis=0))) for sums in (first, second))
    if np.isnan(before) or np.isnan(after):
        return None
    change = metric.value(resampled(second)) - metric.value(resampled(first))
    deviations = np.nan_to_num(change - (after - before))
    return (metric, group, len(both), before, after), deviations
