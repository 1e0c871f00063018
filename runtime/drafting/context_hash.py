"""The 64-bit hash by which a context of some tokens is found: from `SEED`, mixed with each token, the last one first.

So the hash of a longer context continues that of its end. `PhraseTable.following` does the same with Python's integers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ALL = 0xFFFFFFFFFFFFFFFF
SEED = 0x9E3779B97F4A7C15
FACTORS = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # of SplitMix64's output function (Steele, Lea, Flood 2014)

Keys = NDArray[np.uint64]


def lengthened(keys: Keys, tokens: NDArray[np.int64]) -> Keys:
    """Hash contexts that are one token longer.

    Args:
        keys: uint64 [n], the contexts' hashes.
        tokens: int64 [n], the token before each.
    """
    first, second = map(np.uint64, FACTORS)
    keys = (keys ^ tokens.astype(np.uint64)) * first
    keys = (keys ^ (keys >> np.uint64(31))) * second
    return keys ^ (keys >> np.uint64(29))
