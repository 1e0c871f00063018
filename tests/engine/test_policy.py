"""Who goes next on the decoder, decided from plain values."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echovlm_edge.runtime.contracts.request import Priority
from echovlm_edge.runtime.engine.caching.reuse import BLOCK
from echovlm_edge.runtime.engine.scheduling.policy import (
    BACKGROUND_EVERY,
    CHUNK,
    ROWS_AT_FIRST,
    ROWS_AT_LEAST,
    TURN_SHARE,
    chunk_in_blocks,
    chunks,
    moves,
    next_to_prefill,
    preemptible,
    rows_beside,
)
from echovlm_edge.runtime.engine.scheduling.turn_time import TurnTime

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
    first, study, writer = Place("first"), Place("study", BACKGROUND), Place("writer", decoding=True)
    assert chunks([first], 1, 40) == [(first, CHUNK)]
    assert chunks([first, study], 1, 40) == [(first, CHUNK)], "a study's frames wait"
    assert chunks([first, writer], 1, 40) == [(first, 40)]
    assert chunks([first, writer], 1, 9999) == [(first, CHUNK)]
    assert chunks([study, writer], 0, 64) == [(study, 64)] and chunks([study, writer], 1, 64) == []
    assert chunk_in_blocks([first, writer], 1, 40) == [(first, 32)], "whole blocks"
    assert chunk_in_blocks([first, writer], 1, 3) == [(first, BLOCK)]


def test_short_prompts_share_a_turn() -> None:
    writer = Place("writer", decoding=True)
    short = [
        Place(name, joined=joined, target=target) for name, joined, target in (("a", 1, 20), ("b", 2, 30), ("c", 3, 9))
    ]
    assert chunks([writer, *short], 1, 40) == [(short[0], 20), (short[1], 20)]
    assert chunks([writer, *short], 1, 100) == [(short[0], 20), (short[1], 30), (short[2], 9)]


@given(st.integers(0, 3000), st.integers(1, 3000), st.booleans(), st.integers(1, 600))
def test_chunks_end_at_blocks_or_at_the_target(filled: int, more: int, beside: bool, rows: int) -> None:
    member = Place("it", filled=filled, target=filled + more)
    running = [member, Place("other", decoding=True)] if beside else [member]
    ((_, end),), ((_, in_blocks),) = chunks(running, 1, rows), chunk_in_blocks(running, 1, rows)
    assert filled < end <= member.target and filled < in_blocks <= member.target
    assert in_blocks % BLOCK == 0 or in_blocks == member.target


def learnt(step: float, row: float) -> TurnTime:
    """The times of a machine on which a turn takes step + row * rows of a prompt."""
    time = TurnTime()
    for rows in [0, 0, 40, 0, 24, 40]:
        time.learn(rows, step + row * rows)
    return time


times = st.floats(0.01, 1), st.floats(0.0001, 0.1), st.integers(1, 16)


@given(*times, st.floats(0.01, 20))
def test_a_prompt_gets_the_rows_that_the_turn_has_time_for(
    step: float, row: float, written: int, most_seconds: float
) -> None:
    rows = rows_beside(written, learnt(step, row), most_seconds)
    assert step + row * rows <= most_seconds * 1.001 or rows == ROWS_AT_LEAST
    assert step + row * (rows + 1) >= most_seconds * 0.999


@given(*times)
def test_by_default_a_turn_is_shorter_than_a_step_and_a_chunk_one_after_the_other(
    step: float, row: float, written: int
) -> None:
    rows = rows_beside(written, learnt(step, row), None)
    apart = step + (step - written * row) + 64 * row
    assert step + row * rows <= TURN_SHARE * apart * 1.001 or rows == ROWS_AT_LEAST


@pytest.mark.parametrize(("step", "row"), [(0.0184, 0.00105), (0.080, 0.0084)])
def test_on_measured_machines_writers_wait_less_and_a_prompt_hardly_longer(step: float, row: float) -> None:
    """Eight writers at the published width, four layers: Cascade Lake, and Sapphire Rapids with half of its cores taken."""
    rows = rows_beside(8, learnt(step, row), None)
    turn, apart = step + row * rows, step + (step - 8 * row) + 64 * row
    assert turn <= 0.6 * apart
    assert turn / rows <= 1.1 * apart / 64


def test_before_anything_is_known_a_prompt_gets_a_few_rows() -> None:
    assert rows_beside(3, TurnTime(), None) == rows_beside(3, TurnTime(), 0.5) == ROWS_AT_FIRST
    assert rows_beside(8, TurnTime(0.1), None) == ROWS_AT_FIRST, "turns without a prompt tell nothing about a row"
    beginning = TurnTime()
    beginning.learn(32, 1.0)
    assert beginning == TurnTime(), "nor does a row tell anything alone"


def test_what_was_learnt_fades() -> None:
    time = learnt(0.1, 0.01)
    for rows in [0, 32] * 50:
        time.learn(rows, 2 * (0.1 + 0.01 * rows))
    assert time.step == pytest.approx(0.2, rel=0.02) and time.row == pytest.approx(0.02, rel=0.02)


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
