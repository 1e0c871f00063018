"""How much batch work may have slots: as much as can be taken out of them, at once and whole, for interactive work."""

from __future__ import annotations

from echovlm_edge.runtime.contracts.request import Priority
from echovlm_edge.runtime.engine.sequence_state import SequenceState


class Parking:
    """The account of host memory for batch sequences that gave their slots to interactive ones.

    A parked sequence's keys and values are kept as they were in the slot and put back later, so that nothing is computed again and
    its text is the same to the bit. The rule: a batch sequence gets a slot only while the budget could hold it and every other
    batch sequence that is running or parked, each at its full length. So all of them can be parked at any time, and batch never
    makes interactive work wait. Where the budget is too small for one, one at a time runs nevertheless; it is parked while it is
    short enough, and keeps its slot from then on.

    A backend whose cache cannot be read (`SingleSlot`) cannot park: its batch sequences run as they come and keep their slots.
    """

    def __init__(self, budget: int, token_bytes: int, max_sequence: int) -> None:
        """`budget` and what a token's keys and values take, in bytes (0: they cannot be read); tokens that a slot can hold."""
        self._budget, self._token_bytes, self._max_sequence = budget, token_bytes, max_sequence
        self._reserved: dict[SequenceState, int] = {}
        self._kept: dict[SequenceState, int] = {}

    def __len__(self) -> int:
        """How many sequences are parked."""
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """What they take."""
        return sum(self._kept.values())

    def admits(self, sequence: SequenceState) -> bool:
        """Whether it may have a slot now."""
        if sequence.priority is not Priority.BATCH or not self._token_bytes or sequence in self._reserved:
            return True
        return not self._reserved or sum(self._reserved.values()) + self._full_length(sequence) <= self._budget

    def enter(self, sequence: SequenceState) -> None:
        """It gets a slot: what it would take here at its full length is reserved until it leaves."""
        if sequence.priority is Priority.BATCH:
            self._reserved[sequence] = self._full_length(sequence)

    def has_room(self, sequence: SequenceState) -> bool:
        """Whether a sequence in a slot could be parked now."""
        size = sequence.filled * self._token_bytes
        return bool(self._token_bytes) and not sequence.stays and self.bytes + size <= self._budget

    def park(self, sequence: SequenceState) -> None:
        """Count a sequence that has left its slot."""
        assert sequence.parked is not None
        self._kept[sequence] = sequence.parked.nbytes

    def resume(self, sequence: SequenceState) -> None:
        """It has a slot again."""
        self._kept.pop(sequence, None)

    def leave(self, sequence: SequenceState) -> None:
        """It ended."""
        self._kept.pop(sequence, None)
        self._reserved.pop(sequence, None)

    def _full_length(self, sequence: SequenceState) -> int:
        generation = sequence.generation
        new = generation.sampling.max_new_tokens if generation.sampling else 0
        return min(len(generation.prompt.token_ids) + new, self._max_sequence) * self._token_bytes
