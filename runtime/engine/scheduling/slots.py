"""Track which of the decoder's slots are taken, and move sequences between slots."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from echovlm_edge.runtime.backends import SlotCache


class SlotTable:
    """A fixed number of adjacent caches; the lowest free one is taken first, so that the batch stays contiguous."""

    def __init__(self, caches: Sequence[SlotCache]) -> None:
        """Start with all slots free; `caches` are all of a backend's, at least one."""
        self._caches = list(caches)
        self._free = list(range(len(caches)))

    def __len__(self) -> int:
        return len(self._caches)

    def __getitem__(self, slot: int) -> SlotCache:
        return self._caches[slot]

    @property
    def max_sequence(self) -> int:
        """How many tokens each slot can hold."""
        return self._caches[0].max_sequence

    @property
    def free(self) -> int:
        """How many slots are free."""
        return len(self._free)

    def take(self) -> int:
        """Take the lowest free slot; returns its index.

        Raises:
            IndexError: no slot is free.
        """
        return heapq.heappop(self._free)

    def give_back(self, slot: int) -> None:
        """Make a slot free again."""
        heapq.heappush(self._free, slot)

    def move(self, source: int, target: int, tokens: int, target_tokens: int) -> None:
        """Move a sequence of `tokens` tokens to a lower slot.

        The target's own sequence, of `target_tokens` (0: the slot is free), takes the source's place.
        """
        self._caches[source].move(self._caches[target], tokens, target_tokens)
        if target in self._free:
            self._free.remove(target)
            heapq.heapify(self._free)
            self.give_back(source)
