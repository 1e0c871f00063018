"""What was computed before and may be asked again: embeddings of images, keys and values of prompt prefixes; memory bounded.

Everything is kept for one scope, that of the client or of the clients that share (`Client.scope`), and is found by that scope only:
neither the time of a call nor its `reused_tokens` tells that somebody else sent the same image.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.backends import Floats
from echovlm_edge.runtime.contracts.request import IDENTITY_BYTES, IDENTITY_KEY
from echovlm_edge.runtime.prompting.prompt import Prompt
from echovlm_edge.runtime.resources.fair_memory import FairMemory

# Tokens. Rows of a product come out the same to the bit wherever a chunk of a multiple of this many begins.
BLOCK = 16


def block_names(prompt: Prompt, images: Sequence[tuple[bytes, int]], scope: str) -> tuple[bytes, ...]:
    """A name for each beginning of a prompt that is whole blocks long, in their order.

    Two prompts have the name at a place in common where all that decides the keys and values up to there is the same: the tokens,
    and the images' pixels. Another scope has other names. They are keyed hashes of 128 bits, so that none can be foreseen.

    Args:
        prompt: the rendered prompt.
        images: each image's `Frame.identity` and how many tokens it takes, in order. Its grid follows from its pixels.
        scope: whose prompt it is.
    """
    # [n, 3]: the token's id and 0, 0; at an image's tokens the image token's id, which no text has, and the image's identity.
    content = np.zeros((len(prompt.token_ids), 3), np.int64)
    content[:, 0] = prompt.token_ids
    if images:
        halves = np.frombuffer(b"".join(identity for identity, _ in images), np.int64).reshape(-1, 2)
        content[prompt.image_rows, 1:] = np.repeat(halves, [tokens for _, tokens in images], axis=0)
    beginning = blake2b(blake2b(scope.encode()).digest(), key=IDENTITY_KEY, digest_size=IDENTITY_BYTES)
    names = list[bytes]()
    for block in content[: len(content) // BLOCK * BLOCK].reshape(-1, BLOCK, 3):
        beginning.update(block.data)
        names.append(beginning.digest())
    return tuple(names)


@dataclass(frozen=True)
class StoreStats:
    """How a store is doing, since the start; `bytes` and `entries` are of now."""

    hits: int
    misses: int
    entries: int
    bytes: int


class ImageStore:
    """Cached embeddings of images, float32 [m, hidden_size], by scope and identity."""

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes` 0 keeps nothing."""
        self._memory: FairMemory[tuple[str, bytes]] = FairMemory(max_bytes)
        self._kept: dict[tuple[str, bytes], Floats] = {}
        self._lock = threading.Lock()
        self._hits = self._misses = 0

    def get(self, scope: str, identity: bytes) -> Floats | None:
        """An image's embeddings, where they are kept."""
        with self._lock:
            found = self._kept.get((scope, identity))
            if found is None:
                self._misses += 1
                return None
            self._hits += 1
            self._memory.touch((scope, identity))
            return found

    def put(self, scope: str, identity: bytes, embeddings: Floats) -> None:
        """Keep an image's embeddings, where `FairMemory` has room for them."""
        key = scope, identity
        with self._lock:
            if key in self._kept or not self._memory.takes(scope, embeddings.nbytes):
                return
            self._kept[key] = embeddings
            for displaced in self._memory.add(scope, key, embeddings.nbytes):
                del self._kept[displaced]

    def stats(self) -> StoreStats:
        """Its counts."""
        with self._lock:
            return StoreStats(self._hits, self._misses, len(self._kept), self._memory.bytes)


@dataclass(frozen=True, eq=False)
class _Prefix:
    names: Sequence[bytes] = field(repr=False)
    kept: NDArray[Any] = field(repr=False)


class PrefixStore:
    """Keys and values of prompt prefixes, whole blocks of them, found by `block_names`.

    Keys and values at a position depend on nothing after it, so that any beginning of a prefix can be used. What a call costs
    depends on the length of its own prompt, not on how many prefixes are kept.
    """

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes` 0 keeps nothing."""
        self._memory: FairMemory[bytes] = FairMemory(max_bytes)
        self._prefixes: dict[bytes, _Prefix] = {}  # by the name of all of it
        self._through: dict[bytes, dict[bytes, None]] = {}  # a beginning's name to those of the prefixes that have it
        self._lock = threading.Lock()
        self._hits = self._misses = 0

    def longest(self, names: Sequence[bytes]) -> NDArray[Any] | None:
        """The keys and values of as many first blocks as are kept, [tensors, kv_heads, n, head_dim]."""
        with self._lock:
            blocks = 0
            while blocks < len(names) and names[blocks] in self._through:
                blocks += 1
            if not blocks:
                self._misses += 1
                return None
            self._hits += 1
            found = next(iter(self._through[names[blocks - 1]]))
            self._memory.touch(found)
            return self._prefixes[found].kept[:, :, : blocks * BLOCK]

    def covers(self, names: Sequence[bytes]) -> bool:
        """Whether all of these blocks are kept, so that they need not be put."""
        with self._lock:
            return not names or names[-1] in self._through

    def put(self, scope: str, names: Sequence[bytes], kept: NDArray[Any]) -> None:
        """Keep `kept`, [tensors, kv_heads, n, head_dim], of the n / BLOCK blocks `names`, where `FairMemory` has room for it.

        Beginnings of it that were kept by themselves are dropped.
        """
        with self._lock:
            if not names or names[-1] in self._through or not self._memory.takes(scope, kept.nbytes):
                return
            for name in names:
                if name in self._prefixes:
                    self._memory.remove(name)
                    self._drop(name)
            self._prefixes[names[-1]] = _Prefix(tuple(names), kept)
            for name in names:
                self._through.setdefault(name, {})[names[-1]] = None
            for displaced in self._memory.add(scope, names[-1], kept.nbytes):
                self._drop(displaced)

    def stats(self) -> StoreStats:
        """Its counts."""
        with self._lock:
            return StoreStats(self._hits, self._misses, len(self._prefixes), self._memory.bytes)

    def _drop(self, last: bytes) -> None:
        for name in self._prefixes.pop(last).names:
            del self._through[name][last]
            if not self._through[name]:
                del self._through[name]
