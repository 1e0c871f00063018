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
    CHUNK_BESIDE_OTHERS,
    chunk_end,
    moves,
    next_to_prefill,
    preemptible,
)
from echovlm_edge.runtime.engine.reuse import BLOCK

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
    assert chunk_end(first, [first]) == CHUNK
    assert chunk_end(first, [first, study]) == CHUNK, "a study's frames wait"
    assert chunk_end(first, [first, Place("writer", decoding=True)]) == CHUNK_BESIDE_OTHERS
    assert chunk_end(study, [study, first]) == CHUNK_BESIDE_OTHERS
    assert chunk_end(second, [second]) == 100 // BLOCK * BLOCK + CHUNK


@given(st.integers(0, 3000), st.integers(0, 3000), st.booleans())
def test_chunks_end_at_blocks_or_at_the_target(filled: int, more: int, beside: bool) -> None:
    member = Place("it", filled=filled, target=filled + more)
    end = chunk_end(member, [member, Place("other")] if beside else [member])
    assert filled <= end <= member.target and (end > filled or more == 0)
    assert end % BLOCK == 0 or end == member.target


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
