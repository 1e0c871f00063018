"""Count what follows every context of a few tokens in many texts, order by order, without a Python loop over tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.drafting.context_hash import SEED, Keys, lengthened

ORDERS = 6  # tokens of the longest context
FULL = 0xFFFF  # the share 1

Counted = tuple[Keys, NDArray[np.int32], NDArray[np.uint16]]


def count_phrases(texts: Iterable[Sequence[int]], least_texts: int) -> Counted:
    """Count the phrases of every order: a context, and the token after it.

    A phrase that is kept is a context of the next order: both have one number.
    """
    lists = [np.asarray(text, np.int64) for text in texts]
    tokens = np.concatenate([np.empty(0, np.int64), *lists])
    texts_of = np.repeat(np.arange(len(lists)), [len(each) for each in lists])
    inside = np.append(np.diff(texts_of) == 0, False)  # [tokens], whether the same text goes on
    ends = np.flatnonzero(inside) + 1  # where a phrase of this order ends, in the order of the texts
    contexts = tokens[ends - 1]  # the number of the context there
    found = []
    for order in range(1, ORDERS + 1):
        phrases = contexts << 32 | tokens[ends]
        by_phrase = np.argsort(phrases, kind="stable")
        first = np.diff(phrases[by_phrase], prepend=-1) != 0
        starts = np.flatnonzero(first)
        in_text = first | (np.diff(texts_of[ends[by_phrase]], prepend=-1) != 0)
        kept = np.add.reduceat(in_text, starts, dtype=np.int64) >= least_texts if len(starts) else first
        times = np.diff(starts, append=len(ends))
        examples = by_phrase[starts[kept]]
        found.append(_likeliest(contexts[examples], ends[examples], times[kept], np.bincount(contexts), tokens, order))
        numbers = np.empty(len(ends), np.int64)
        numbers[by_phrase] = np.repeat(np.where(kept, np.cumsum(kept) - 1, -1), times)
        longer = (numbers >= 0) & inside[ends]
        contexts, ends = numbers[longer], ends[longer] + 1
    keys, follow, shares = map(np.concatenate, zip(*found, strict=True))
    by_key = np.argsort(keys)
    return keys[by_key], follow[by_key].astype(np.int32), shares[by_key]


def _likeliest(
    contexts: NDArray[np.int64],
    ends: NDArray[np.int64],
    times: NDArray[np.int64],
    totals: NDArray[np.int64],
    tokens: NDArray[np.int64],
    order: int,
) -> tuple[Keys, NDArray[np.int64], NDArray[np.uint16]]:
    """Choose the phrase of each context that occurs most often, among equals the one with the lowest token.

    Args:
        contexts: the number of each phrase's context, ascending; within a context phrases are in the order of their tokens.
        ends: where each phrase ends in `tokens` the first time.
        times: how often each phrase occurs.
        totals: how often each context occurs.
        tokens: of all texts.
        order: tokens of a context.

    Returns:
        The contexts' hashes, the tokens that follow, and the shares.
    """
    best = np.lexsort((-times, contexts))
    best = best[np.diff(contexts[best], prepend=-1) != 0]
    keys = np.full(len(best), SEED, np.uint64)
    for back in range(1, order + 1):
        keys = lengthened(keys, tokens[ends[best] - back])
    shares = times[best] / (totals[contexts[best]] + 1)
    return keys, tokens[ends[best]], np.rint(shares * FULL).astype(np.uint16)
