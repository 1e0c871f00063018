"""What the scheduler knows of one generation: whether it waits, is in a slot or is parked, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.backends import Floats
from echovlm_edge.runtime.contracts.request import Priority
from echovlm_edge.runtime.engine.generation import Generation
from echovlm_edge.runtime.engine.sampling import Sampler


@dataclass(eq=False)
class SequenceState:
    """A generation on its way. Only the decoder's thread changes it.

    Attributes:
        generation: what is asked.
        slot: the cache that it has, while it has one.
        filled: tokens in the cache, or in `parked`.
        unread: embeddings of the tokens yet to be prefilled, while it has a slot.
        parked: its keys and values, while it has none after it had one: see `Parking`.
        joined: when it first got a slot, by time.perf_counter.
        stays: its keys and values could not be copied, so that it keeps its slot.
        sampler: once it writes.
        token: the last one that it wrote.
        position: the last one's.
        left: tokens that it may still write.
    """

    generation: Generation
    slot: int = -1
    filled: int = 0
    unread: Floats = field(default_factory=lambda: np.empty((0, 0), np.float32), repr=False)
    parked: NDArray[Any] | None = field(default=None, repr=False)
    joined: float = 0.0
    stays: bool = False
    sampler: Sampler | None = None
    token: int = field(default=-1, repr=False)
    position: int = -1
    left: int = 0

    @property
    def priority(self) -> Priority:
        """Who goes first."""
        return self.generation.priority

    @property
    def target(self) -> int:
        """How many tokens are to be prefilled."""
        return self.generation.target

    @property
    def decoding(self) -> bool:
        """Whether it is prefilled, and gains a token a step."""
        return self.sampler is not None

    @property
    def background(self) -> bool:
        """Whether nobody has asked yet."""
        return self.priority is Priority.BACKGROUND
