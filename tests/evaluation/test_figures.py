"""Figures, their intervals by resampling, and differences of two runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echovlm_edge.runtime.evaluation.data.recognition import RowTask
from echovlm_edge.runtime.evaluation.figures import ALL, by_place, differences, figures
from echovlm_edge.runtime.evaluation.schema import ScoredRow
from echovlm_edge.runtime.evaluation.scoring.metric import Metric, Statistics

SCORE = Metric("score", "Score", "family", "share", "a mean")
ERRORS = replace(SCORE, key="errors", more_is_better=False)
ROW = ScoredRow(1, "row 1", "1", "k", RowTask.CAPTION, "breast", "zh", "?", "x", (), "y", "stop", 3, (), {})


def rows_of(scores: list[float], key: str = "score") -> list[ScoredRow]:
    return [
        replace(ROW, number=place, key=str(place), statistics={key: (score, 1.0)}) for place, score in enumerate(scores)
    ]


def test_a_mean_has_the_interval_of_its_standard_error() -> None:
    scores = np.random.default_rng(3).normal(0.5, 0.1, 400)
    (figure,) = (one for one in figures(rows_of(list(scores)), [SCORE]) if one.group == ALL)
    assert figure.rows == 400 and figure.value == pytest.approx(100 * scores.mean())
    assert figure.low is not None and figure.high is not None
    reach = 1.96 * 100 * scores.std() / 20
    assert figure.low == pytest.approx(figure.value - reach, abs=0.15) and figure.high == pytest.approx(
        figure.value + reach, abs=0.15
    )


def test_shares_add_up_what_was_asked_not_rows() -> None:
    asked: list[Statistics] = [(1, 1), (0, 3), (2, 4), (0, 0)]
    rows = [replace(ROW, key=str(place), statistics={"score": one}) for place, one in enumerate(asked)]
    assert by_place(figures(rows, [SCORE]))["score", ALL].value == pytest.approx(100 * 3 / 8)


def test_groups_have_their_own_rows() -> None:
    other = replace(
        ROW,
        key="o",
        task=RowTask.REPORT,
        region="liver",
        language="en",
        statistics={"score": (1.0, 1.0)},
        not_sent=("earlier turns",),
    )
    found = by_place(figures([*rows_of([0.0, 0.0]), other], [SCORE]))
    assert {group: (round(one.value, 6), one.rows) for (_, group), one in found.items()} == {
        "all": (pytest.approx(33.333333), 3),
        "task: caption": (0.0, 2),
        "task: report": (100.0, 1),
        "region: breast": (0.0, 2),
        "region: liver": (100.0, 1),
        "language: en": (100.0, 1),
        "language: zh": (0.0, 2),
        "without earlier turns": (100.0, 1),
    }
    assert found["score", "task: report"].low is None  # of a single row


def test_nothing_asked_has_no_figure() -> None:
    assert figures([replace(ROW, statistics={"score": (0.0, 0.0)})], [SCORE]) == ()


def compared(before: list[float], after: list[float], metric: Metric = SCORE) -> tuple[str, float, float, float]:
    pairs = list(zip(rows_of(before, metric.key), rows_of(after, metric.key), strict=True))
    (one,) = differences({ALL: pairs}, [metric], lambda *_: True)
    return one.verdict, one.change, one.low, one.high


def test_pairs_find_a_small_change_that_two_samples_would_not() -> None:
    random = np.random.default_rng(5)
    before = random.uniform(0, 1, 200)
    after = before + 0.02 + random.normal(0, 0.02, 200)
    verdict, change, low, high = compared(list(before), list(after))
    assert verdict == "better" and 0 < low < change < high and high - low < 1.5  # two samples: some 11
    assert compared(list(after), list(before))[0] == "worse"
    assert compared(list(before), list(after), ERRORS)[0] == "worse"


def test_noise_is_not_called_a_change() -> None:
    random = np.random.default_rng(6)
    before = random.uniform(0, 1, 100)
    assert compared(list(before), list(before + random.normal(0, 0.1, 100)))[0] == "cannot tell"
    assert compared(list(before), list(before)) == ("the same", 0.0, 0.0, 0.0)


def test_intervals_of_many_figures_hold_at_once() -> None:
    """Without any change, hardly a family of twenty figures has one that leaves zero out."""
    wrong = 0
    metrics = [replace(SCORE, key=f"m{place}") for place in range(20)]
    for seed in range(20):
        random = np.random.default_rng(seed)
        drawn = random.normal(0.5, 0.1, (2, 60, 20))
        rows = [
            [
                replace(
                    ROW,
                    key=str(place),
                    statistics={metric.key: (float(score), 1.0) for metric, score in zip(metrics, scores, strict=True)},
                )
                for place, scores in enumerate(run)
            ]
            for run in drawn
        ]
        found = differences({ALL: list(zip(*rows, strict=True))}, metrics, lambda *_: True)
        wrong += any(one.verdict != "cannot tell" for one in found)
    assert wrong <= 4  # 1 expected; one at a time it would be 13


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=30))
def test_the_change_is_always_inside_its_interval(pairs: list[tuple[float, float]]) -> None:
    _, change, low, high = compared([one for one, _ in pairs], [other for _, other in pairs])
    assert low <= change <= high
