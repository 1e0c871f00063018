"""The phrases of many texts: for every context of a few tokens that enough of them share, the token that most often followed it.

A context is found by a 64-bit hash. A wrong guess, as after two contexts with the same hash, costs time and never changes a text.

The file of a table, little-endian: `MAGIC`, the number of contexts n as uint64, then its three arrays, uint64 [n], int32 [n], uint16 [n].
"""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.drafting.context_hash import ALL, FACTORS, SEED, Keys
from echovlm_edge.runtime.drafting.guess import Guess
from echovlm_edge.runtime.drafting.phrase_counts import FULL, ORDERS, count_phrases

MAGIC = b"PHRASES1"
HEADER = len(MAGIC) + 8
ENTRY = 8 + 4 + 2  # bytes of a context


class PhraseTable:
    """A table of phrases in memory or mapped from a file; it is never changed.

    Attributes:
        keys: uint64 [n], the contexts' hashes in ascending order.
        tokens: int32 [n], what most often followed each.
        shares: uint16 [n], the estimated probability that it follows, of `FULL`.
    """

    def __init__(self, keys: Keys, tokens: NDArray[np.int32], shares: NDArray[np.uint16]) -> None:
        """Take the three arrays."""
        self.keys, self.tokens, self.shares = keys, tokens, shares
        # The items of a memory view are Python's integers, which bisect compares in a fraction of the time of numpy's scalars.
        self._keys, self._tokens, self._shares = keys.data, tokens.data, shares.data

    @classmethod
    def build(cls, texts: Sequence[Sequence[int]], least_texts: int, groups: Sequence[int] | None = None) -> Self:
        """Count the phrases of texts.

        Args:
            texts: token ids of each.
            least_texts: a context and what follows it are in the table if at least so many of the texts have them together.
            groups: a number for each text, ascending: those of one number count as one, as do texts about one patient.
        """
        return cls(*count_phrases(texts, least_texts, groups))

    @classmethod
    def open(cls, file: Path) -> Self:
        """Map a file that `save` wrote.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is no table of phrases.
        """
        with file.open("rb") as opened:
            content = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        count = int.from_bytes(content[len(MAGIC) : HEADER], "little")
        if content[: len(MAGIC)] != MAGIC or len(content) != HEADER + count * ENTRY:
            raise ValueError(f"{file} is no table of phrases")
        return cls(
            np.frombuffer(content, "<u8", count, HEADER),
            np.frombuffer(content, "<i4", count, HEADER + 8 * count),
            np.frombuffer(content, "<u2", count, HEADER + 12 * count),
        )

    def save(self, file: Path) -> None:
        """Write the table into a file."""
        with file.open("wb") as opened:
            opened.write(MAGIC + len(self).to_bytes(8, "little"))
            for values, dtype in ((self.keys, "<u8"), (self.tokens, "<i4"), (self.shares, "<u2")):
                opened.write(values.astype(dtype, copy=False).tobytes())

    def __len__(self) -> int:
        """Return the number of contexts."""
        return len(self.keys)

    @property
    def nbytes(self) -> int:
        """Return the size of its arrays in bytes."""
        return ENTRY * len(self)

    def following(self, tokens: Sequence[int]) -> Guess | None:
        """Guess what follows `tokens`, by the longest of its ends that is a context of the table."""
        found, order, key = -1, 0, SEED
        keys, count = self._keys, len(self._keys)
        for token in tokens[: -ORDERS - 1 : -1]:
            key = ((key ^ token) * FACTORS[0]) & ALL
            key = ((key ^ (key >> 31)) * FACTORS[1]) & ALL
            key ^= key >> 29
            place = bisect_left(keys, key)
            if place == count or keys[place] != key:
                break  # each end of a context of the table is one too
            found, order = place, order + 1
        return Guess(self._tokens[found], self._shares[found] / FULL, order) if order else None
