"""A backend without a batched step, behind the interface of one that has it: a single slot, whose contents stay in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.backends import Backend, Cache, Floats, Logits, SlotCache
from echovlm_edge.runtime.prompting.rotary import Angles


class SingleSlot:
    """A backend's own cache. It cannot be read, so nothing of it is kept: `read` gives no tensors at no positions."""

    def __init__(self, cache: Cache) -> None:
        """`cache` is what the backend made."""
        self.cache = cache

    @property
    def max_sequence(self) -> int:
        """How many tokens it can hold."""
        return self.cache.max_sequence

    def clear(self, tokens: int) -> None:
        """Zero them: see `Cache.clear`."""
        self.cache.clear(tokens)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Nothing."""
        return np.empty((0, 0, 0, 0), np.float32)

    def write(self, start: int, kept: NDArray[Any]) -> None:
        """Nothing was read, so there is nothing to write."""
        assert kept.shape[2] == 0


class OneByOne:
    """Serves one sequence after another on a backend that can only do that."""

    def __init__(self, backend: Backend) -> None:
        """Everything but the step is the backend's own."""
        self.backend = backend
        self.encode, self.project, self.embed, self.new_cache = (
            backend.encode,
            backend.project,
            backend.embed,
            backend.new_cache,
        )

    def new_slots(self, count: int, max_sequence: int) -> list[SlotCache]:
        """One slot, however many are asked for."""
        return [SingleSlot(self.backend.new_cache(max_sequence))]

    def decode(
        self, embeddings: Floats, angles: Angles, past: int, logit_rows: NDArray[np.int64], cache: Cache
    ) -> Logits:
        """Decoder: see `Backend.decode`."""
        held = cache.cache if isinstance(cache, SingleSlot) else cache
        return self.backend.decode(embeddings, angles, past, logit_rows, held)

    def step(self, embeddings: Floats, angles: Angles, past: NDArray[np.int64], slots: Sequence[SlotCache]) -> Logits:
        """Decoder: see `BatchBackend.step`; there is one sequence."""
        (slot,) = slots
        return self.decode(embeddings, angles, int(past[0]), np.zeros(1, np.int64), slot)
