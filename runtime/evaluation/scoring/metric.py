"""What a metric is: sums over rows, and the figure that follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as schema

from echovlm_edge.runtime.evaluation.data.recognition import RowTask

# What one row adds to a metric's sums: (share, 1) for a mean over rows, (right, asked) for a share, eleven counts for corpus BLEU.
Statistics = tuple[float, ...]
BLEU_ORDERS = 4


@dataclass(frozen=True)
class Case:
    """What a metric sees of a row: its question, reference and answer, and what decides whether the metric applies."""

    task: RowTask
    language: str
    question: str = field(repr=False)
    reference: str = field(repr=False)
    answer: str = field(repr=False)


@schema(frozen=True, config=ConfigDict(extra="forbid"))
class Metric:
    """A column of the tables.

    Attributes:
        key: names it in files.
        title: names it in tables.
        family: metrics that are read together.
        kind: how the figure follows from the sums.
        note: what exactly is computed, in a sentence.
        more_is_better: False for a share of what went wrong.
        headline: stands in the tables of groups.
    """

    key: str
    title: str
    family: str
    kind: Literal["share", "corpus_bleu"]
    note: str
    more_is_better: bool = True
    headline: bool = False

    def value(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the figure, 0 to 100, of sums [..., k]; NaN where nothing was asked."""
        if self.kind == "corpus_bleu":
            return np.apply_along_axis(_corpus_bleu, -1, sums)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(100 * sums[..., 0] / sums[..., 1])


class Scorer(Protocol):
    """Computes some metrics of a row together, because they share work."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics, in the order of tables."""
        ...

    def score(self, case: Case) -> Mapping[str, Statistics]:
        """Return a row's statistics by the metric's key; one that does not apply to the row is left out."""
        ...


def mean_of(score: float) -> Statistics:
    """What a row adds to a metric that is the mean of scores between 0 and 1."""
    return score, 1.0


def _corpus_bleu(sums: NDArray[np.float64]) -> float:
    """BLEU of matches and totals of each order, and of the lengths of answers and references, as sacrebleu's corpus_score has it."""
    from sacrebleu.metrics import BLEU

    counts = [round(count) for count in sums]
    matches, totals, (answer, reference) = counts[:BLEU_ORDERS], counts[BLEU_ORDERS:-2], counts[-2:]
    return float(BLEU.compute_bleu(matches, totals, answer, reference, smooth_method="exp").score)
