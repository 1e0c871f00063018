"""Compute statistics of repeated measurements: percentiles, and how certain a difference is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass as schema

PERCENTILES = {"median": 50, "p90": 90, "p95": 95, "p99": 99, "max": 100}
RESAMPLES, SEED = 2000, 0
IN_8_OF_10 = 0.8416  # standard deviations: the normal distribution's 80th percentile
LARGEST = 20.0  # of a logarithm that is worth telling


@schema(frozen=True)
class Distribution:
    """Percentiles and the mean of `count` measurements, in their unit."""

    count: int
    mean: float
    median: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Distribution:
        """Compute the distribution of one or more measurements."""
        found = np.percentile(values, list(PERCENTILES.values()))
        return cls(len(values), float(np.mean(values)), *(float(value) for value in found))


@dataclass(frozen=True)
class Change:
    """How a figure's mean changed, as shares: 0.1 is a tenth more.

    Attributes:
        before: the geometric mean, in the figure's unit.
        after: likewise.
        ratio: the change.
        low: where its interval begins; the intervals of all figures hold at once.
        high: where it ends.
        error: standard error of the change's natural logarithm.
    """

    before: float
    after: float
    ratio: float
    low: float
    high: float
    error: float

    def smallest(self, tolerance: float) -> float:
        """The smallest slowdown that runs as many and as uneven find to be above `tolerance`, in 8 tries of 10.

        Such a change's interval, as wide as this one, begins above the tolerance even where chance puts the measured change
        below the real one by what it stays within in 8 tries of 10.
        """
        reach = math.log1p(self.high) - math.log1p(self.ratio)
        return math.expm1(min(math.log1p(tolerance) + reach + IN_8_OF_10 * self.error, LARGEST))


def changes(
    before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]], level: float = 0.95
) -> dict[str, Change]:
    """Estimate how the geometric means of some figures changed from one set of runs to another.

    The intervals are simultaneous: with probability `level` all of them hold, however many figures there are. That is the
    max-t bootstrap (Westfall & Young 1993; Efron & Tibshirani 1993, ch. 12): whole runs are resampled, so that figures that
    move together count as such, and the largest studentized deviation over all figures gives the one factor for their standard
    errors. A run that a pause of the system made slow counts as slow as the slowest ordinary one.

    Args:
        before: positive measurements by figure, each figure's in the same order of runs; at least 3 runs.
        after: the same figures, of other runs.
        level: of the intervals.
    """
    names = list(before)
    first, second = (_ordinary(np.log(np.array([runs[name] for name in names], float))) for runs in (before, after))
    difference = second.mean(axis=1) - first.mean(axis=1)
    error = _error(first, second)
    generator = np.random.default_rng(SEED)
    drawn = [runs[:, generator.integers(0, runs.shape[1], (RESAMPLES, runs.shape[1]))] for runs in (first, second)]
    deviation = drawn[1].mean(axis=-1) - drawn[0].mean(axis=-1) - difference[:, None]
    # A resample that repeats one value has no spread of its own: a quarter of the sample's is the least.
    spread = np.maximum(_error(*drawn), error[:, None] / 4)
    largest = np.max(np.abs(deviation) / spread, axis=0)
    factor = float(np.quantile(largest, level))
    ends = (difference, difference - factor * error, difference + factor * error)
    shares = [np.expm1(np.minimum(end, LARGEST)) for end in ends]
    figures = np.array([np.exp(first.mean(axis=1)), np.exp(second.mean(axis=1)), *shares, error])
    return {name: Change(*(float(value) for value in column)) for name, column in zip(names, figures.T, strict=True)}


def _ordinary(runs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Clip each row of logarithms at three deviations from its median.

    The deviation is the median absolute one, scaled to a normal distribution's standard deviation.
    """
    middle = np.median(runs, axis=1, keepdims=True)
    reach = 3 * 1.4826 * np.median(np.abs(runs - middle), axis=1, keepdims=True)
    return np.clip(runs, middle - reach, middle + reach)


def _error(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the standard error of the difference of two means over the last axis; never quite 0."""
    parts = [runs.var(axis=-1, ddof=1) / runs.shape[-1] for runs in (first, second)]
    return np.asarray(np.sqrt(parts[0] + parts[1]) + 1e-9)
