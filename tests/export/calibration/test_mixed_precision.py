"""Choosing bits and block sizes under a budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echovlm_edge.export.calibration.rounding.mixed import Unit, bits_of, choose, precisions
from echovlm_edge.export.weights.quantize import Precision
from echovlm_edge.runtime.contracts.errors import NotPossibleHere

WAYS = precisions(128)


def unit(name: str, values: int, *errors: float) -> Unit:
    return Unit((name,), values, dict(zip(WAYS, errors, strict=True)))


def test_the_ways_begin_with_the_base() -> None:
    assert precisions(128) == (Precision(4, 128), Precision(4, 64), Precision(4, 32), Precision(8, 128))
    assert precisions(64) == (Precision(4, 64), Precision(4, 32), Precision(8, 64))
    assert [bits_of(way) for way in WAYS] == [4.125, 4.25, 4.5, 8.125]


def test_the_most_sensitive_layer_gets_the_bits() -> None:
    """8 bits for one of forty equal layers are 0.1 bits on average."""
    units = [unit(f"layer {number}", 1000, 1.0, 0.9, 0.8, 0.01) for number in range(39)] + [
        unit("sensitive", 1000, 100.0, 90.0, 80.0, 0.1)
    ]
    chosen = choose(units, 4.125 + 4 / 40)
    assert chosen["sensitive"] == Precision(8, 128)
    assert {chosen[f"layer {number}"] for number in range(39)} == {Precision(4, 128)}


def test_no_room_is_a_sentence_and_just_enough_is_the_base() -> None:
    units = [unit("one", 10, 4.0, 3.0, 2.0, 1.0)]
    assert choose(units, 4.125) == {"one": Precision(4, 128)}
    with pytest.raises(NotPossibleHere, match=r"--bits 4 is less than the 4.125"):
        choose(units, 4.0)


@given(
    units=st.lists(
        st.tuples(st.integers(1, 1000), st.lists(st.floats(0, 1e6), min_size=4, max_size=4)), min_size=1, max_size=8
    ),
    bits=st.floats(4.125, 9),
)
def test_the_budget_is_kept_and_nothing_gets_worse(units: list[tuple[int, list[float]]], bits: float) -> None:
    made = [unit(str(number), values, *errors) for number, (values, errors) in enumerate(units)]
    chosen = choose(made, bits)
    used = sum(bits_of(chosen[str(number)]) * one.values for number, one in enumerate(made))
    assert used <= bits * sum(one.values for one in made) * (1 + 1e-9)
    for number, one in enumerate(made):
        assert one.errors[chosen[str(number)]] <= one.errors[WAYS[0]]
    if bits >= 8.125:
        for number, one in enumerate(made):
            assert one.errors[chosen[str(number)]] == min(one.errors.values())
