"""What was computed before and may be asked again: embeddings of images, keys and values of prompt prefixes; memory bounded."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.backends import Floats
from echovlm_edge.runtime.prompt import Prompt


def identities(prompt: Prompt, images: list[tuple[int, int]]) -> NDArray[np.int64]:
    """What decides each position's keys and values, int64 [n]: a token's id, or the identity of the image it is of.

    Args:
        prompt: the rendered prompt.
        images: each image's identity and how many tokens it takes, in order. Its grid follows from its pixels.
    """
    named = prompt.token_ids.copy()
    if images:
        named[prompt.image_rows] = np.repeat([name for name, _ in images], [tokens for _, tokens in images])
    return named


@dataclass(frozen=True)
class StoreStats:
    """How a store is doing, since the start; `bytes` and `entries` are of now."""

    hits: int
    misses: int
    entries: int
    bytes: int


class ImageStore:
    """Embeddings of images seen before, float32 [m, hidden_size] by identity; what was used longest ago goes first."""

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes` 0 keeps nothing."""
        self._max_bytes = max_bytes
        self._kept: OrderedDict[int, Floats] = OrderedDict()
        self._lock = threading.Lock()
        self._bytes = self._hits = self._misses = 0

    def get(self, identity: int) -> Floats | None:
        """An image's embeddings, where they are kept."""
        with self._lock:
            found = self._kept.get(identity)
            if found is None:
                self._misses += 1
                return None
            self._hits += 1
            self._kept.move_to_end(identity)
            return found

    def put(self, identity: int, embeddings: Floats) -> None:
        """Keep an image's embeddings, unless they are larger than all of the memory."""
        with self._lock:
            if identity in self._kept or embeddings.nbytes > self._max_bytes:
                return
            self._kept[identity] = embeddings
            self._bytes += embeddings.nbytes
            while self._bytes > self._max_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= oldest.nbytes

    def stats(self) -> StoreStats:
        """Its counts."""
        with self._lock:
            return StoreStats(self._hits, self._misses, len(self._kept), self._bytes)


@dataclass(frozen=True, eq=False)
class _Prefix:
    identities: NDArray[np.int64]
    kept: NDArray[Any]


class PrefixStore:
    """Keys and values of prompt prefixes. Keys and values at a position depend on nothing after it: any prefix of one will do."""

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes` 0 keeps nothing."""
        self._max_bytes = max_bytes
        self._prefixes: list[_Prefix] = []  # the last used at the end
        self._lock = threading.Lock()
        self._hits = self._misses = 0

    def longest(self, wanted: NDArray[np.int64]) -> NDArray[Any] | None:
        """The keys and values of as many first positions of `wanted` as are known, [tensors, kv_heads, n, head_dim]."""
        with self._lock:
            shared, best = max(((_shared(prefix.identities, wanted), prefix) for prefix in self._prefixes),
                               key=lambda pair: pair[0], default=(0, None))  # fmt: skip
            if best is None or shared == 0:
                self._misses += 1
                return None
            self._hits += 1
            self._prefixes.remove(best)
            self._prefixes.append(best)
            return best.kept[:, :, :shared]

    def covers(self, wanted: NDArray[np.int64]) -> bool:
        """Whether all of `wanted` is known, so that it need not be put."""
        with self._lock:
            return any(_shared(prefix.identities, wanted) == len(wanted) for prefix in self._prefixes)

    def put(self, named: NDArray[np.int64], kept: NDArray[Any]) -> None:
        """Keep `kept`, [tensors, kv_heads, n, head_dim], of the n positions `named`; prefixes of it are dropped."""
        with self._lock:
            self._prefixes = [
                prefix for prefix in self._prefixes if _shared(prefix.identities, named) < len(prefix.identities)
            ]
            if not 0 < kept.nbytes <= self._max_bytes:
                return
            self._prefixes.append(_Prefix(named.copy(), kept))
            while sum(prefix.kept.nbytes for prefix in self._prefixes) > self._max_bytes:
                del self._prefixes[0]

    def stats(self) -> StoreStats:
        """Its counts."""
        with self._lock:
            return StoreStats(
                self._hits, self._misses, len(self._prefixes), sum(prefix.kept.nbytes for prefix in self._prefixes)
            )


def _shared(first: NDArray[np.int64], second: NDArray[np.int64]) -> int:
    """How many positions two prompts have in common at their start."""
    length = min(len(first), len(second))
    differ = first[:length] != second[:length]
    return int(differ.argmax()) if differ.any() else length
