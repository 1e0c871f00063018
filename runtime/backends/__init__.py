"""Define the interface of backends, which run a bundle's parts; there is one file per kind of engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, SupportsInt, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.prompting.rotary import Angles

Floats = NDArray[np.float32]


class Logits(Protocol):
    """Logits, float32 [n, vocab_size] or one row [vocab_size], as an array or still on a device.

    `np.asarray` and `copy` give the array; `argmax` of one row does not copy it from the device.
    """

    def argmax(self) -> SupportsInt:
        """Return the index of the largest logit of one row. With NaN in it, raises UnusableNumbers or returns the NaN's index."""
        ...

    def __getitem__(self, row: int, /) -> Any:
        """Return one row."""
        ...

    def __array__(self) -> NDArray[Any]:
        """Return the logits as an array."""
        ...

    def copy(self) -> Floats:
        """Return an array that stays valid after the next decoder call."""
        ...


class Cache(Protocol):
    """The KV cache of one slot: fixed buffers that the decoder writes in place. One generation at a time owns it."""

    @property
    def max_sequence(self) -> int:
        """How many tokens it can hold."""
        ...

    def clear(self, tokens: int) -> None:
        """Zero at least the first `tokens` positions."""
        ...


class Backend(Protocol):
    """Runs a model's three parts.

    One thread encodes and projects while another one decodes, so the two must not share mutable state. The engine never makes
    two calls of the same kind at once.
    """

    def encode(self, patches: Floats, angles: Angles) -> Floats:
        """Run the vision encoder: one image's patches [p, patch_values] to features [p, embed_dim]."""
        ...

    def project(self, features: Floats) -> Floats:
        """Run the projector: features [p, embed_dim] to image embeddings [p / 4, hidden_size]."""
        ...

    def embed(self, token_ids: NDArray[np.int64]) -> Floats:
        """Embed token ids: int64 [n] to float32 [n, hidden_size]."""
        ...

    def new_cache(self, max_sequence: int) -> Cache:
        """Make an empty KV cache for one sequence of up to `max_sequence` tokens."""
        ...

    def decode(
        self, embeddings: Floats, angles: Angles, past: int, logit_rows: NDArray[np.int64], cache: Cache
    ) -> Logits:
        """Run the decoder: append s tokens to the sequence in `cache`, after its first `past` tokens.

        Args:
            embeddings: [s, hidden_size].
            angles: M-RoPE angles of the s tokens.
            past: tokens in the cache before these.
            logit_rows: int64 [n], which of the s tokens to compute logits for.
            cache: written in place.

        Returns:
            Logits [n, vocab_size], valid until the next call.
        """
        ...


class SlotCache(Cache, Protocol):
    """A cache among several whose contents can be copied out and back in, so that a prefix is computed once."""

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Copy the keys and values at positions `start` to `stop`: [tensors, kv_heads, positions, head_dim].

        `start` is a multiple of the engine's BLOCK; there may be some positions more than `stop - start`, to the end of a block.
        """
        ...

    def write(self, start: int, kept: NDArray[Any]) -> None:
        """Write what `read` returned, from position `start` on; a prefix of whole BLOCKs is a prefix of axis 2."""
        ...


@dataclass(frozen=True)
class SlotRows:
    """New tokens of one sequence in a turn: a chunk of its prompt, or the token that it wrote last.

    Attributes:
        slot: its cache; the tokens are appended after the first `past`.
        past: tokens in the cache before these.
        embeddings: [s, hidden_size].
        angles: M-RoPE angles of the s tokens.
    """

    slot: SlotCache
    past: int
    embeddings: Floats = field(repr=False)
    angles: Angles


@runtime_checkable
class BatchBackend(Backend, Protocol):
    """A backend that runs new tokens of several sequences together.

    `encode` and `project` may run in one thread while `decode` and `turn` run in another.
    """

    @property
    def packs_rows(self) -> bool:
        """Whether one call takes chunks and tokens of any slots; else only single tokens of adjacent slots run together."""
        ...

    def new_slots(self, count: int, max_sequence: int) -> Sequence[SlotCache]:
        """Make `count` adjacent caches, each for one sequence; the system gives them memory as they are written."""
        ...

    def turn(self, rows: Sequence[SlotRows]) -> Logits:
        """Append new tokens to each of n sequences; returns the logits of each one's last token, [n, vocab_size].

        The slots are some of one call of `new_slots`, in their order and each once. The logits are valid until the next call.
        """
        ...
