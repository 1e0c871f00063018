"""Define the interface of backends, which run a bundle's parts; there is one file or folder per kind of engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, SupportsInt

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.prompting.rotary import Angles
from echovlm_edge.runtime.prompting.windows import Windows

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


class Kept(Protocol):
    """Keys and values that were copied out of a slot: those of adjacent tokens of a sequence."""

    @property
    def tokens(self) -> int:
        """How many tokens' keys and values it has."""
        ...

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        ...

    def first(self, tokens: int) -> Kept:
        """Return those of the first `tokens` tokens, a multiple of the engine's BLOCK; no copy is made."""
        ...

    def spilled(self) -> Kept:
        """Return a copy in the host's memory, or itself if it lies there.

        Raises:
            MemoryError: the host has no room for it.
        """
        ...


class SlotCache(Protocol):
    """The KV cache of one sequence: fixed buffers that the decoder writes in place. One generation at a time owns it."""

    @property
    def max_sequence(self) -> int:
        """How many tokens it can hold."""
        ...

    @property
    def token_bytes(self) -> int:
        """The size of one token's keys and values."""
        ...

    def clear(self, tokens: int, start: int = 0) -> None:
        """Zero the positions from `start` up to `tokens`; where keys lie in blocks, `start` is a multiple of the engine's BLOCK."""
        ...

    def read(self, tokens: int, start: int = 0) -> Kept:
        """Copy the keys and values of at least the tokens from `start` up to `tokens`, in the memory of the slots if there is room.

        `start` is a multiple of the engine's BLOCK.

        Raises:
            MemoryError: there is no room anywhere.
        """
        ...

    def park(self, tokens: int) -> Kept:
        """Copy them to the host's memory, as `read` does; raises what it raises."""
        ...

    def write(self, kept: Kept, start: int = 0) -> None:
        """Write what `read` or `park` of a slot of the same backend returned, from the position `start` on."""
        ...

    def move(self, target: SlotCache, tokens: int, target_tokens: int) -> None:
        """Move the first `tokens` positions to `target`, whose first `target_tokens` come here."""
        ...


@dataclass(frozen=True)
class SlotRows:
    """New tokens of one sequence in a turn: a chunk of its prompt, or the token that it wrote last and a draft of the next ones.

    Attributes:
        slot: its cache; the tokens are appended after the first `past`.
        past: tokens in the cache before these.
        embeddings: [s, hidden_size].
        angles: M-RoPE angles of the s tokens.
        logits: of how many of the last tokens the logits are wanted, 1 to s.
    """

    slot: SlotCache
    past: int
    embeddings: Floats = field(repr=False)
    angles: Angles
    logits: int = 1

    @property
    def tokens(self) -> int:
        """How many tokens these are."""
        return len(self.embeddings)

    @property
    def logit_rows(self) -> NDArray[np.int64]:
        """Which of its tokens the logits are wanted of, int64 [logits]."""
        return np.arange(self.tokens - self.logits, self.tokens)


@dataclass(frozen=True)
class SlotMemory:
    """What slots take, and the memory beside them for keys and values that are kept.

    Attributes:
        count: how many slots, each for one sequence.
        max_sequence: tokens that each can hold.
        kept_bytes: for kept keys and values beside the slots; only a device with its own memory reserves it.
        spilled_bytes: of the host's memory for those that the device has no room for; reserved likewise.
    """

    count: int
    max_sequence: int
    kept_bytes: int = 0
    spilled_bytes: int = 0


class Backend(Protocol):
    """Runs a model's three parts.

    One thread may encode and project while another one decodes, so the two must not share mutable state. The engine never makes
    two calls of the same kind at once.
    """

    def encode(self, patches: Floats, angles: Angles, windows: Windows | None = None) -> Floats:
        """Run the vision encoder: one image's patches [p, patch_values] to features [p, embed_dim], both in merge order.

        `windows` are `image_windows`', None for a vision encoder without any.
        """
        ...

    def project(self, features: Floats) -> Floats:
        """Run the projector: features [p, embed_dim] to image embeddings [p / 4, hidden_size]."""
        ...

    def embed(self, token_ids: NDArray[np.int64]) -> Floats:
        """Embed token ids: int64 [n] to float32 [n, hidden_size]."""
        ...

    def new_slots(self, memory: SlotMemory) -> Sequence[SlotCache]:
        """Make adjacent empty caches.

        Raises:
            NotPossibleHere: the engines were built for fewer sequences, or there is too little memory.
        """
        ...

    def decode(
        self, embeddings: Floats, angles: Angles, past: int, logit_rows: NDArray[np.int64], cache: SlotCache
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

    @property
    def packs_rows(self) -> bool:
        """Whether one call takes chunks and tokens of any slots; else only tokens of adjacent slots run together."""
        ...

    def step_tokens(self, sequences: int) -> int:
        """Return how many tokens of each of so many adjacent sequences one call takes and computes as steps of one token do.

        1 where several tokens of a sequence have other bits than one after the other, or take a call for each sequence.
        """
        ...

    def turn(self, rows: Sequence[SlotRows]) -> Sequence[Sequence[Logits]]:
        """Append new tokens to each of n sequences; returns of each one the logits [vocab_size] of its last `SlotRows.logits` tokens.

        The slots are some of one call of `new_slots`, in their order and each once. The logits are valid until the next call.
        Positions behind a sequence's new tokens may be overwritten with numbers, except the last of those that a slot has.
        """
        ...


def move_by_copies(source: SlotCache, target: SlotCache, tokens: int, target_tokens: int) -> None:
    """Move a sequence between slots as `SlotCache.move` does, where a copy of a slot costs nothing but its time."""
    displaced = target.read(target_tokens) if target_tokens else None
    target.write(source.read(tokens))
    if displaced is not None:
        source.write(displaced)


def new_cache(backend: Backend, max_sequence: int) -> SlotCache:
    """Make one empty cache for a sequence of up to `max_sequence` tokens."""
    (slot,) = backend.new_slots(SlotMemory(1, max_sequence))
    return slot
