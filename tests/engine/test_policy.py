"""Who goes next on the decoder, decided from plain values."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echovlm_edge.runtime.contracts.request import Priority
from echovlm_edge.runtime.engine.policy import (
    BACKGROUND_EVERY,
    CHUNK,
    ROWS_AT_FIRST,
    SLOWER_BESIDE_PROMPTS,
    chunk_end,
    moves,
    next_to_prefill,
    preemptible,
    rows_beside,
)
from echovlm_edge.runtime.engine.reuse import BLOCK
from echovlm_edge.runtime.engine.turn_time import TurnTime

INTERACTIVE, BATCH, BACKGROUND = Priority


class Place(NamedTuple):
    """A sequence in a slot."""

    name: str
    priority: Priority = INTERACTIVE
    joined: float = 0.0
    filled: int = 0
    target: int = 2000
    decoding: bool = False


def test_foreground_is_prefilled_by_priority_then_age() -> None:
    young, old, batch = Place("young", joined=2), Place("old", joined=1), Place("batch", BATCH, joined=0)
    writer, study = Place("writer", decoding=True), Place("study", BACKGROUND)
    running = [study, writer, batch, young, old]
    order = []
    while (following := next_to_prefill(running, steps=1)) is not None:
        order.append(following.name)
        running.remove(following)
    assert order == ["old", "young", "batch"], "the study has to wait for the writer"


@pytest.mark.parametrize("steps", range(2 * BACKGROUND_EVERY))
def test_a_study_is_read_now_and_then_beside_who_decodes(steps: int) -> None:
    writer, study = Place("writer", decoding=True), Place("study", BACKGROUND)
    assert (next_to_prefill([writer, study], steps) is study) == (steps % BACKGROUND_EVERY == 0)
    assert next_to_prefill([study], steps) is study, "nobody else wants the decoder"
    assert next_to_prefill([writer], steps) is None


def test_chunks_are_short_beside_others() -> None:
    first, second, study = Place("first"), Place("second", filled=100), Place("study", BACKGROUND)
    writer = Place("writer", decoding=True)
    assert chunk_end(first, [first], 40) == CHUNK
    assert chunk_end(first, [first, study], 40) == CHUNK, "a study's frames wait"
    assert chunk_end(first, [first, writer], 40) == 32, "whole blocks"
    assert chunk_end(first, [first, writer], 3) == BLOCK, "a prompt always gets on"
    assert chunk_end(first, [first, writer], 9999) == CHUNK
    assert chunk_end(study, [study, first], 64) == 64
    assert chunk_end(second, [second], 64) == 100 // BLOCK * BLOCK + CHUNK


@given(st.integers(0, 3000), st.integers(0, 3000), st.booleans(), st.integers(0, 600))
def test_chunks_end_at_blocks_or_at_the_target(filled: int, more: int, beside: bool, rows: int) -> None:
    member = Place("it", filled=filled, target=filled + more)
    end = chunk_end(member, [member, Place("other")] if beside else [member], rows)
    assert filled <= end <= member.target and (end > filled or more == 0)
    assert end % BLOCK == 0 or end == member.target


def learnt(base: float, per_row: float) -> TurnTime:
    """Turns of a machine on which a turn takes base + per_row * rows."""
    time = TurnTime()
    for rows in [8] * 20 + [40, 8, 24, 40] * 5:
        time.learn(rows, base + per_row * rows)
    return time


@given(st.floats(0.001, 1), st.floats(0.0001, 0.1), st.integers(1, 16), st.floats(0.01, 20))
def test_a_prompt_gets_the_rows_that_the_turn_has_time_for(
    base: float, per_row: float, written: int, most_seconds: float
) -> None:
    rows = rows_beside(written, learnt(base, per_row), most_seconds)
    assert base + per_row * (rows + written) <= most_seconds * 1.001 or rows == 0
    assert base + per_row * (rows + written + 1.01) >= most_seconds * 0.999


@given(st.floats(0.001, 1), st.floats(0.0001, 0.1), st.integers(1, 16))
def test_by_default_a_turn_takes_a_few_times_what_it_takes_without_a_prompt(
    base: float, per_row: float, written: int
) -> None:
    rows = rows_beside(written, learnt(base, per_row), None)
    without = base + per_row * written
    assert base + per_row * (rows + written) == pytest.approx(SLOWER_BESIDE_PROMPTS * without, abs=1.01 * per_row)


def test_before_anything_is_known_a_prompt_gets_a_few_rows() -> None:
    assert rows_beside(3, TurnTime(), None) == rows_beside(3, TurnTime(), 0.5) == ROWS_AT_FIRST
    alike = TurnTime()
    for _ in range(50):
        alike.learn(8, 0.1)
    assert rows_beside(8, alike, None) == ROWS_AT_FIRST, "turns of one size tell nothing about a row"


def test_what_was_learnt_fades() -> None:
    time = learnt(0.1, 0.01)
    for rows in [8, 40] * 100:
        time.learn(rows, 2 * (0.1 + 0.01 * rows))
    assert time.of(20) == pytest.approx(2 * 0.3, rel=0.02)


places = st.builds(Place, st.uuids().map(str), st.sampled_from(Priority), st.floats(0, 9), decoding=st.booleans())


@given(st.lists(places), st.sampled_from(Priority), st.sets(st.integers(0, 20)))
def test_only_less_urgent_work_gives_its_slot(running: list[Place], priority: Priority, full: set[int]) -> None:
    def can_park(place: Place) -> bool:
        return running.index(place) not in full

    asked = preemptible(running, priority, can_park)
    assert all(place.priority > priority for place in asked)
    batch = [place for place in asked if place.priority is BATCH]
    assert not batch or (priority is INTERACTIVE and all(map(can_park, batch)))
    ranks = [(place.priority, place.joined) for place in asked]
    assert ranks == sorted(ranks, reverse=True), "background before batch, the youngest before the oldest"
    if priority is INTERACTIVE:
        assert {place.name for place in running if place.priority is BACKGROUND} <= {place.name for place in asked}


@given(st.sets(st.integers(0, 15), min_size=1))
def test_those_that_decode_come_to_stand_in_the_first_slots(decoding: set[int]) -> None:
    standing = {slot: slot for slot in decoding}
    planned = moves(decoding)
    for source, target in planned:
        assert source > target and target not in standing
        standing[target] = standing.pop(source)
    assert set(standing) == set(range(len(decoding)))
    assert len(planned) == sum(slot >= len(decoding) for slot in decoding), "no more moves than needed"
