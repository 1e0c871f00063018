"""What runs a bundle's parts: one small interface, one file per engine kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, SupportsInt, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.prompting.rotary import Angles

Floats = NDArray[np.float32]
PREFILL_CHUNK = 512  # the most tokens that one call of the decoder takes


class Logits(Protocol):
    """Logits float32 [n, vocab_size], or one row of them [vocab_size], an array or still on a device.

    `np.asarray` and `copy` give the array; `argmax` of one row costs no copy of it.
    """

    def argmax(self) -> SupportsInt:
        """The largest logit's index, of one row; raises UnusableNumbers, or gives NaN's where that is in the array."""
        ...

    def __getitem__(self, row: int, /) -> Any:
        """One row."""
        ...

    def __array__(self) -> NDArray[Any]:
        """The array."""
        ...

    def copy(self) -> Floats:
        """The array, to keep."""
        ...


class Cache(Protocol):
    """The KV cache of one slot: fixed buffers that the decoder writes in place. Its owner is one generation at a time."""

    @property
    def max_sequence(self) -> int:
        """How many tokens it can hold."""
        ...

    def clear(self, tokens: int) -> None:
        """Zero at least the first `tokens` positions."""
        ...


class Backend(Protocol):
    """A model's three parts.

    One thread encodes and projects while another one decodes, so these two must not share what a call changes. Two calls of
    either kind at once there are never: the engine owns the order.
    """

    def encode(self, patches: Floats, angles: Angles) -> Floats:
        """Vision encoder: one image's patches [p, patch_values] to features [p, embed_dim]."""
        ...

    def project(self, features: Floats) -> Floats:
        """Projector: features [p, embed_dim] to image embeddings [p / 4, hidden_size]."""
        ...

    def embed(self, token_ids: NDArray[np.int64]) -> Floats:
        """Token embedding: int64 [n] to float32 [n, hidden_size]."""
        ...

    def new_cache(self, max_sequence: int) -> Cache:
        """An empty KV cache for one sequence."""
        ...

    def decode(
        self, embeddings: Floats, angles: Angles, past: int, logit_rows: NDArray[np.int64], cache: Cache
    ) -> Logits:
        """Decoder: append s tokens to the sequence in `cache`, of which `past` tokens are kept.

        Args:
            embeddings: [s, hidden_size].
            angles: M-RoPE's of the s tokens.
            past: tokens in the cache before these.
            logit_rows: int64 [n], which of the s tokens to give logits for.
            cache: written in place.

        Returns:
            Logits [n, vocab_size], valid until the next call.
        """
        ...


class SlotCache(Cache, Protocol):
    """A cache among several whose contents can be taken out and put back, so that a prefix is computed once."""

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """A copy of the keys and values at positions `start` to `stop`: [tensors, kv_heads, stop - start, head_dim]."""
        ...

    def write(self, start: int, kept: NDArray[Any]) -> None:
        """Put back, from position `start` on, what `read` gave; a prefix of positions is a prefix of axis 2."""
        ...


@runtime_checkable
class BatchBackend(Backend, Protocol):
    """A backend that runs one decode step of several sequences together.

    `encode` and `project` may run in one thread while `decode` and `step` run in another.
    """

    def new_slots(self, count: int, max_sequence: int) -> Sequence[SlotCache]:
        """Caches next to each other, each for one sequence; memory is taken as it is written to."""
        ...

    def step(self, embeddings: Floats, angles: Angles, past: NDArray[np.int64], slots: Sequence[SlotCache]) -> Logits:
        """Decoder: append one token to each of n sequences.

        Args:
            embeddings: [n, hidden_size].
            angles: M-RoPE's of each sequence's token.
            past: int64 [n], tokens in each cache before this one.
            slots: n of `new_slots`' caches in their order, without a gap; written in place.

        Returns:
            Logits [n, vocab_size], valid until the next call.
        """
        ...
