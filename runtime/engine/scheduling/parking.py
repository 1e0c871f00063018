"""Limit the batch sequences in slots to those that could all be parked at once to make room for interactive ones."""

from __future__ import annotations

from echovlm_edge.runtime.contracts.request import Priority
from echovlm_edge.runtime.engine.caching.reuse import BLOCK
from echovlm_edge.runtime.engine.scheduling.sequence_state import SequenceState


class Parking:
    """Accounts for the host memory of batch sequences that were preempted by interactive ones.

    A parked sequence's keys and values are copied out of its slot and put back later, so that nothing is computed twice and the
    text stays identical. A batch sequence gets a slot only if the budget can hold it and every other batch sequence that is running
    or parked, each at its full length. So all of them can be parked at any time, and interactive sequences never wait for batch ones.
    If the budget is too small even for one sequence, batch sequences run one at a time; such a sequence can be parked while it is
    short enough, and keeps its slot after that. Keys and values are copied in whole blocks, and so they count.
    """

    def __init__(self, budget: int, token_bytes: int, max_sequence: int) -> None:
        """Start with nothing parked.

        Args:
            budget: host memory for parked sequences, in bytes.
            token_bytes: size of one token's keys and values.
            max_sequence: tokens that a slot can hold.
        """
        self._budget, self._token_bytes, self._max_sequence = budget, token_bytes, max_sequence
        self._reserved: dict[SequenceState, int] = {}
        self._kept: dict[SequenceState, int] = {}

    def __len__(self) -> int:
        """How many sequences are parked."""
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """Bytes that the parked sequences take."""
        return sum(self._kept.values())

    def admits(self, sequence: SequenceState) -> bool:
        """Check whether a sequence may have a slot now."""
        if sequence.priority is not Priority.BATCH or sequence in self._reserved:
            return True
        return not self._reserved or sum(self._reserved.values()) + self._full_length(sequence) <= self._budget

    def enter(self, sequence: SequenceState) -> None:
        """Reserve the memory of a sequence that gets a slot, at its full length, until it leaves."""
        if sequence.priority is Priority.BATCH:
            self._reserved[sequence] = self._full_length(sequence)

    def has_room(self, sequence: SequenceState) -> bool:
        """Check whether a sequence in a slot could be parked now."""
        return not sequence.stays and self.bytes + self._size(sequence.cached) <= self._budget

    def park(self, sequence: SequenceState) -> None:
        """Count the memory of a sequence that was copied out of its slot."""
        assert sequence.parked is not None
        self._kept[sequence] = sequence.parked.nbytes

    def resume(self, sequence: SequenceState) -> None:
        """Stop counting a sequence that has a slot again."""
        self._kept.pop(sequence, None)

    def leave(self, sequence: SequenceState) -> None:
        """Remove a sequence that ended, with its reservation."""
        self._kept.pop(sequence, None)
        self._reserved.pop(sequence, None)

    def _full_length(self, sequence: SequenceState) -> int:
        generation = sequence.generation
        new = generation.sampling.max_new_tokens if generation.sampling else 0
        return self._size(min(len(generation.prompt.token_ids) + new, self._max_sequence))

    def _size(self, tokens: int) -> int:
        return -(-tokens // BLOCK) * BLOCK * self._token_bytes
