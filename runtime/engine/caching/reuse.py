"""Caches with bounded memory: embeddings of images, and keys and values of prompt prefixes.

Each entry belongs to one scope, that of a client or of the clients that share a cache (`Client.scope`), and is found by that scope
only: neither a call's time nor its `reused_tokens` reveals that somebody else sent the same image.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from echovlm_edge.runtime.backends import Floats, Kept
from echovlm_edge.runtime.contracts.request import IDENTITY_BYTES, IDENTITY_KEY
from echovlm_edge.runtime.engine.caching.joined_kept import JoinedKept
from echovlm_edge.runtime.prompting.prompt import Prompt
from echovlm_edge.runtime.resources.fair_memory import FairMemory

# Tokens per block. A row of a matrix product is bit-identical in every chunk, as long as chunks begin at multiples of this.
BLOCK = 16


def block_names(
    prompt: Prompt, images: Sequence[tuple[bytes, int]], scope: str, written: Sequence[int] = ()
) -> tuple[bytes, ...]:
    """Name each prefix of a prompt, and of the tokens written after it, that is a whole number of blocks long, the shortest first.

    Two prompts have the same name for a prefix if and only if its tokens and its images' pixels are equal, because these determine its
    keys and values. Each scope has different names. Names are keyed hashes of 128 bits, so that nobody can predict them.

    Args:
        prompt: the rendered prompt.
        images: each image's `Frame.identity` and number of tokens, in order. The grid need not be hashed: the pixels determine it.
        scope: whose prompt it is.
        written: tokens after the prompt.
    """
    # [n, 3]: the token's id and 0, 0; at an image's tokens the image token's id, which no text has, and the image's identity.
    content = np.zeros((len(prompt.token_ids) + len(written), 3), np.int64)
    content[:, 0] = np.concatenate((prompt.token_ids, np.asarray(written, np.int64)))
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
    """A cache's counters since the start; `bytes` and `entries` are current."""

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
        """Return an image's embeddings if they are cached."""
        with self._lock:
            found = self._kept.get((scope, identity))
            if found is None:
                self._misses += 1
                return None
            self._hits += 1
            self._memory.touch((scope, identity))
            return found

    def put(self, scope: str, identity: bytes, embeddings: Floats) -> None:
        """Cache an image's embeddings if `FairMemory` has room for them."""
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


@dataclass(eq=False)
class _Prefix:
    names: Sequence[bytes] = field(repr=False)
    scope: str = field(repr=False)
    kept: JoinedKept = field(repr=False)
    about: bytes = field(default=b"", repr=False)


class PrefixStore:
    """Cached keys and values of prompt prefixes, in whole blocks, found by their `block_names`.

    Keys and values at a position do not depend on later positions, so that any beginning of a cached prefix can be used. The cost of
    a lookup depends on the length of the prompt, not on how many prefixes are cached.

    Prefixes with the same beginning share the copies that lie within it; `stats` and the bounds count a shared copy for each of them.

    They lie in the memory of the slots. Where the host has a memory of its own, those that have no room there spill to it; one that is
    used again is copied from its slot once more. One thread puts and looks up, any thread may ask for `stats`.
    """

    def __init__(self, max_bytes: int, spilled_bytes: int = 0) -> None:
        """`max_bytes` are in the memory of the slots, 0 keeps nothing; `spilled_bytes` in the host's besides."""
        self._near: FairMemory[bytes] = FairMemory(max_bytes)
        self._far: FairMemory[bytes] = FairMemory(spilled_bytes)
        self._prefixes: dict[bytes, _Prefix] = {}  # by the name of the whole prefix
        self._through: dict[
            bytes, dict[bytes, None]
        ] = {}  # a block's name to the names of the prefixes that contain it
        self._replies: dict[bytes, bytes] = {}  # by what they are about: the names of the prefixes with a reply
        self._hits = self._misses = 0

    def longest(self, names: Sequence[bytes]) -> JoinedKept | None:
        """Return the keys and values of as many leading blocks as are cached."""
        blocks = self._blocks(names)
        if not blocks:
            self._misses += 1
            return None
        self._hits += 1
        last = self._through_block(names[blocks - 1])
        (self._near if last in self._near else self._far).touch(last)
        return self._prefixes[last].kept.first(blocks * BLOCK)

    def covers(self, names: Sequence[bytes]) -> bool:
        """Check whether all of these blocks are cached and none has spilled, so that there is nothing to `put`."""
        return not names or any(last in self._near for last in self._through.get(names[-1], ()))

    def put(
        self, scope: str, names: Sequence[bytes], size: int, copy: Callable[[int], Kept], about: bytes = b""
    ) -> None:
        """Cache the keys and values of the blocks `names`, of `size` bytes, once there is room for them.

        `copy(start)` makes those from the token `start` on: what is cached of its beginning is not copied twice.

        Nothing happens if they are covered already, or `FairMemory` has no room for them. Shorter prefixes that are contained in it are
        dropped. Of prefixes that end with a reply, only the newest one about the same images is kept, as each counts these images'
        keys and values: `about` is the name of the images' last block, empty for all other prefixes.

        Raises:
            MemoryError: `copy` found no memory.
        """
        if self.covers(names) or not self._near.takes(scope, size):
            return
        beginning = self._beginning(names)
        for name in names:
            if name in self._prefixes:
                self._forget(name)
        if about in self._replies:
            self._forget(self._replies[about])
        for displaced in self._near.add(scope, names[-1], size):
            self._spill(displaced, self._prefixes[displaced])
        try:
            kept = beginning.followed_by(copy(beginning.tokens))
        except BaseException:
            self._near.remove(names[-1])
            raise
        self._prefixes[names[-1]] = _Prefix(tuple(names), scope, kept, about)
        if about:
            self._replies[about] = names[-1]
        for name in names:
            self._through.setdefault(name, {})[names[-1]] = None

    def stats(self) -> StoreStats:
        """Its counts."""
        size = self._near.bytes + self._far.bytes
        return StoreStats(self._hits, self._misses, len(self._prefixes), size)

    def _blocks(self, names: Sequence[bytes]) -> int:
        """Count the leading blocks that are cached."""
        blocks = 0
        while blocks < len(names) and names[blocks] in self._through:
            blocks += 1
        return blocks

    def _through_block(self, name: bytes) -> bytes:
        """Return a prefix that contains a block, one that has not spilled if there is one."""
        having = self._through[name]
        return next((last for last in having if last in self._near), next(iter(having)))

    def _beginning(self, names: Sequence[bytes]) -> JoinedKept:
        """Return the copies that are cached of these blocks and have not spilled, from the first block on."""
        blocks = self._blocks(names)
        last = self._through_block(names[blocks - 1]) if blocks else b""
        return self._prefixes[last].kept.whole(blocks * BLOCK) if last in self._near else JoinedKept()

    def _spill(self, last: bytes, prefix: _Prefix) -> None:
        """Move a prefix that was displaced to the host's memory, or drop it."""
        size = prefix.kept.nbytes
        if not self._far.takes(prefix.scope, size):
            self._drop(last)
            return
        for displaced in self._far.add(prefix.scope, last, size):
            self._drop(displaced)
        try:
            prefix.kept = prefix.kept.spilled()
        except MemoryError:
            self._forget(last)

    def _forget(self, last: bytes) -> None:
        (self._near if last in self._near else self._far).remove(last)
        self._drop(last)

    def _drop(self, last: bytes) -> None:
        prefix = self._prefixes.pop(last)
        if prefix.about:
            del self._replies[prefix.about]
        for name in prefix.names:
            del self._through[name][last]
            if not self._through[name]:
                del self._through[name]
