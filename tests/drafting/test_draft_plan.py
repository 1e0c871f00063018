"""How many tokens are drafted: as many as make for the most tokens a second, and nobody's pace falls."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echovlm_edge.runtime.drafting.plan import LEAST, SLOWEST, Shape, packed, padded, plan
from echovlm_edge.runtime.drafting.row_cost import RowCost

SURE, UNSURE = [0.95, 0.9, 0.85], [0.3, 0.1]
FREE = RowCost({1: 1.0, 32: 1.0})
VNNI = RowCost({1: 1.0, 8: 1.24, 16: 1.6})
DEAR = RowCost({1: 1.0, 2: 2.0})


class Listed:
    """Guesses whose probabilities are listed."""

    def __init__(self, probabilities: list[float]) -> None:
        self._left: Iterator[float] = iter(probabilities)

    def guess(self, least: float) -> float | None:
        probability = next(self._left, None)
        return None if probability is None or probability <= least else probability


def chosen(lists: list[list[float]], cost: RowCost, rows: Shape = packed, beside: int = 0, most: int = 15) -> list[int]:
    return plan([Listed(each) for each in lists], beside, cost, rows, [most] * len(lists))


def test_what_is_likely_is_drafted_where_rows_are_cheap() -> None:
    assert chosen([SURE], FREE) == chosen([SURE], VNNI) == [3]
    assert chosen([SURE], DEAR) == [0]
    assert chosen([SURE], VNNI, most=2) == [2]
    assert chosen([[]], FREE) == [0]


def test_the_likeliest_of_all_sequences_come_first() -> None:
    first, second = chosen([SURE, [0.5, 0.02]], VNNI)
    assert first == 3 and second == 1


def test_a_sequence_that_gains_nothing_is_not_slowed() -> None:
    steep = RowCost({1: 1.0, 2: 1.01, 3: 1.02, 8: 2.0})
    together, alone = chosen([[0.9] * 6, []], steep), chosen([[0.9] * 6], steep)
    assert sum(together) < sum(alone)
    assert chosen([[0.9] * 6], steep, beside=2) < alone, "a prompt beside them waits too"


def test_no_step_is_longer_than_what_was_measured() -> None:
    flat = RowCost({1: 1.0, 8: 1.0, 16: 1.0})
    assert chosen([[0.9] * 6], flat) == [6]
    assert sum(chosen([[0.9] * 6] * 8, flat)) == 16 - 8
    assert chosen([[0.9] * 6] * 8, flat, padded) == [1] * 8


def test_rectangles_count_their_padding() -> None:
    assert padded([0, 0]) == 2 and padded([3, 0]) == 8 and packed([3, 0]) == 5
    assert chosen([[0.9, 0.8], [0.9, 0.8]], VNNI, padded) == [2, 2]
    assert sum(chosen([[0.3], *[[]] * 7], VNNI, padded)) == 0, "one guess is not worth eight rows"


LISTS = st.lists(
    st.lists(st.sampled_from([1.0, 0.9, 0.6, 0.4, 0.2]), max_size=3).map(
        lambda factors: [round(float(product_of(factors[: end + 1])), 9) for end in range(len(factors))]
    ),
    min_size=1,
    max_size=3,
)


def product_of(factors: list[float]) -> float:
    total = 1.0
    for factor in factors:
        total *= factor
    return total


@given(LISTS, st.sampled_from([FREE, VNNI, DEAR]), st.sampled_from([0, 4]))
def test_no_other_choice_is_better_by_more_than_a_rounding(
    lists: list[list[float]], cost: RowCost, beside: int
) -> None:
    """Among all choices under which nobody is slowed, for rows that are packed."""

    def pace(counts: tuple[int, ...]) -> float:
        gained = [sum(each[:count]) for each, count in zip(lists, counts, strict=True)]
        seconds = cost(beside + packed(counts))
        fair = (1 + (0.0 if beside else min(gained))) * cost(beside + len(lists)) >= SLOWEST * seconds
        return (len(lists) + sum(gained)) / seconds if fair else 0.0

    lists = [[each for each in one if each > LEAST] for one in lists]
    every = product(*[range(len(one) + 1) for one in lists])
    found = pace(tuple(chosen(lists, cost, beside=beside)))
    if all(cost(beside + rows + 1) - cost(beside + rows) < 0.05 for rows in range(1, 13)):
        assert found >= max(map(pace, every)) * 0.97
    assert found >= pace((0,) * len(lists)) - 1e-9


@pytest.mark.parametrize("cost", [FREE, VNNI, DEAR])
def test_more_rows_never_cost_less(cost: RowCost) -> None:
    assert all(cost(rows + 1) >= cost(rows) for rows in range(1, 300))
    assert all(
        cost.least_step(rows) <= cost(rows + more) / more - cost(rows) / more + 1e-9
        for rows, more in product(range(1, 100), range(1, 100))
        if rows + more < 127
    )


def test_costs_lie_on_lines_between_what_was_measured() -> None:
    assert VNNI(8) == 1.24 and VNNI(4) == pytest.approx(1 + 0.24 * 3 / 7) and VNNI(24) == pytest.approx(1.96)
    assert VNNI(300) == pytest.approx(1.6 + 284 * 0.045)
    assert RowCost({1: 2.0, 4: 1.0})(4) == 2.0, "a measurement that was too slow"
