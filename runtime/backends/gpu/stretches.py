"""Divide one block of memory into stretches, which return to it when they are dropped."""

from __future__ import annotations

import weakref
from collections import deque
from dataclasses import dataclass

ALIGNMENT = 256  # bytes


@dataclass(frozen=True, eq=False)
class Stretch:
    """A part of a block, from `address` on; its bytes are free again once nobody refers to it."""

    address: int


class Stretches:
    """First fit, with free neighbours joined. Stretches are few and large: prefixes of prompts.

    One thread takes them. It queues all copies on one stream, so that a stretch can be used again before the copies from it have run.
    """

    def __init__(self, address: int, size: int) -> None:
        """Divide the `size` bytes from `address` on."""
        self._free = [(address, size)] if size else []  # by address, none touches the next
        self._returned: deque[tuple[int, int]] = deque()  # any thread may drop a stretch, at any moment

    def take(self, size: int) -> Stretch:
        """Return a stretch of `size` bytes.

        Raises:
            MemoryError: no free stretch is so long.
        """
        self._join()
        size += -size % ALIGNMENT
        for index, (start, length) in enumerate(self._free):
            if length >= size:
                self._free[index : index + 1] = [(start + size, length - size)] if length > size else []
                taken = Stretch(start)
                weakref.finalize(taken, self._returned.append, (start, size))
                return taken
        raise MemoryError

    def _join(self) -> None:
        returned = [self._returned.popleft() for _ in range(len(self._returned))]
        joined: list[tuple[int, int]] = []
        for start, length in sorted(self._free + returned):
            if joined and sum(joined[-1]) == start:
                joined[-1] = (joined[-1][0], joined[-1][1] + length)
            else:
                joined.append((start, length))
        self._free = joined
