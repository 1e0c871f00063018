"""What is parked stays within its budget, in the whole blocks that are copied."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from echovlm_edge.runtime.backends.onnxruntime import HostSlot
from echovlm_edge.runtime.contracts.request import Priority, Sampling
from echovlm_edge.runtime.engine.scheduling.parking import Parking
from echovlm_edge.runtime.engine.scheduling.sequence_state import SequenceState
from tests.support.hashed_decoder import generation

# One slot of 96 tokens whose keys lie in transposed blocks of 16, as on a CPU.
SLOT = HostSlot(
    {"keys.0": np.zeros((1, 2, 6, 4, 16), np.float16), "values.0": np.zeros((1, 2, 96, 4), np.float16)}, 0, 96
)


def batch(tokens: int) -> SequenceState:
    """A batch sequence of so many tokens, in a slot."""
    return SequenceState(generation(range(tokens), Sampling(4), priority=Priority.BATCH), slot=0, filled=tokens)


@given(st.lists(st.integers(1, 96), min_size=1, max_size=4), st.integers(0, 4000))
def test_no_copies_take_more_than_the_budget(lengths: list[int], budget: int) -> None:
    parking = Parking(budget, SLOT.token_bytes, SLOT.max_sequence)
    for sequence in map(batch, lengths):
        if parking.has_room(sequence):
            sequence.parked = SLOT.park(sequence.filled)
            parking.park(sequence)
        assert parking.bytes <= budget


@given(st.lists(st.integers(1, 90), min_size=1, max_size=6), st.integers(0, 8000))
def test_all_that_have_slots_beside_each_other_can_be_parked(lengths: list[int], budget: int) -> None:
    parking = Parking(budget, SLOT.token_bytes, SLOT.max_sequence)
    entered = list[SequenceState]()
    for sequence in map(batch, lengths):
        if parking.admits(sequence):
            parking.enter(sequence)
            entered.append(sequence)
    for sequence in entered if len(entered) > 1 else []:
        sequence.filled = min(sequence.filled + 4, SLOT.max_sequence)
        assert parking.has_room(sequence)
        sequence.parked = SLOT.park(sequence.filled)
        parking.park(sequence)
