"""Wrap a backend without a batched step as a batch backend with one slot, whose cache cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.backends import Backend, Cache, Floats, Logits, SlotCache, SlotRows
from echovlm_edge.runtime.prompting.rotary import Angles


class SingleSlot:
    """A backend's own cache. It cannot be read, so that nothing of it is cached: `read` returns an empty array."""

    def __init__(self, cache: Cache) -> None:
        """Wrap the `cache` that the backend made."""
        self.cache = cache

    @property
    def max_sequence(self) -> int:
        """How many tokens it can hold."""
        return self.cache.max_sequence

    def clear(self, tokens: int) -> None:
        """Zero at least the first `tokens` positions."""
        self.cache.clear(tokens)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return an empty array."""
        return np.empty((0, 0, 0, 0), np.float32)

    def write(self, start: int, kept: NDArray[Any]) -> None:
        """Do nothing, as nothing was read."""
        assert kept.shape[2] == 0


class OneByOne:
    """Runs one sequence after another on a backend that has no batched step."""

    def __init__(self, backend: Backend) -> None:
        """Wrap `backend`; everything but the step is its own."""
        self.backend = backend
        self.encode, self.project, self.embed, self.new_cache = (
            backend.encode,
            backend.project,
            backend.embed,
            backend.new_cache,
        )

    def new_slots(self, count: int, max_sequence: int) -> list[SlotCache]:
        """Make one slot, regardless of `count`."""
        return [SingleSlot(self.backend.new_cache(max_sequence))]

    def decode(
        self, embeddings: Floats, angles: Angles, past: int, logit_rows: NDArray[np.int64], cache: Cache
    ) -> Logits:
        """Run the decoder, as `Backend.decode` does."""
        held = cache.cache if isinstance(cache, SingleSlot) else cache
        return self.backend.decode(embeddings, angles, past, logit_rows, held)

    @property
    def packs_rows(self) -> bool:
        """One slot has nothing to pack."""
        return False

    def turn(self, rows: Sequence[SlotRows]) -> Logits:
        """Append new tokens to the one sequence, as `BatchBackend.turn` does."""
        (only,) = rows
        last = np.array([len(only.embeddings) - 1])
        return self.decode(only.embeddings, only.angles, only.past, last, only.slot)
