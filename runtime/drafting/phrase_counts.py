"""Count what follows every context of a few tokens in many texts, order by order, without a Python loop over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.drafting.context_hash import SEED, Keys, lengthened

ORDERS = 6  # tokens of the longest context
PRIOR = 5  # the shorter context counts as so many occurrences of a context: shares are then near what is accepted
FULL = 0xFFFF  # the share 1

Counted = tuple[Keys, NDArray[np.int32], NDArray[np.uint16]]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class _Phrases:
    """The phrases of one order that enough texts share, in the order of their contexts; a phrase is a context and the token after it.

    Attributes:
        contexts: int64 [p], the number of each one's context among the phrases of the order before; of the first order, its token.
        ends: int64 [p], where in all tokens each one ends the first time.
        times: int64 [p], how often it occurs.
        totals: int64 [contexts], how often each context occurs before any token.
    """

    contexts: Integers
    ends: Integers
    times: Integers
    totals: Integers


def count_phrases(texts: Sequence[Sequence[int]], least_texts: int, groups: Sequence[int] | None = None) -> Counted:
    """Count the phrases of every order, and choose the likeliest token after each context.

    A token's share after a context of n tokens is (times + PRIOR * its share after the last n - 1 of them) / (total + PRIOR), 0 after none:
    interpolation with a Dirichlet prior (MacKay and Peto, "A hierarchical Dirichlet language model", 1995).

    Args:
        texts: token ids of each.
        least_texts: of how many texts a phrase must be part.
        groups: texts of the same group, which are adjacent, count as one of them; None if each counts.

    Returns:
        The contexts' hashes uint64 [n] in ascending order, the tokens int32 [n], their shares uint16 [n] in units of 1 / `FULL`.
    """
    lists = [np.asarray(text, np.int64) for text in texts]
    lengths = [len(each) for each in lists]
    tokens = np.concatenate([np.empty(0, np.int64), *lists])
    text_of = np.repeat(np.arange(len(lists)), lengths)
    group_of = text_of if groups is None else np.repeat(np.asarray(groups, np.int64), lengths)
    inside = np.append(np.diff(text_of) == 0, False)  # [tokens], whether the same text goes on
    ends = np.flatnonzero(inside) + 1  # of this order's phrases, each occurrence, in the order of the texts
    contexts = tokens[ends - 1]  # of each: a phrase that is kept is a context of the next order, under the same number
    shorter, shares = np.zeros(len(tokens), np.int64), np.zeros(1)
    found = []
    for order in range(1, ORDERS + 1):
        phrases, numbers = _shared(contexts, ends, tokens, group_of, least_texts)
        prior = PRIOR * shares[shorter[phrases.ends]]
        shares = (phrases.times + prior) / (phrases.totals[phrases.contexts] + PRIOR)
        found.append(_likeliest(phrases, shares, tokens, order))
        shorter[ends] = numbers
        longer = (numbers >= 0) & inside[ends]
        contexts, ends = numbers[longer], ends[longer] + 1
    keys, follow, units = map(np.concatenate, zip(*found, strict=True))
    by_key = np.argsort(keys)
    return keys[by_key], follow[by_key].astype(np.int32), units[by_key]


def _shared(
    contexts: Integers, ends: Integers, tokens: Integers, group_of: Integers, least_texts: int
) -> tuple[_Phrases, Integers]:
    """Find the phrases that enough groups of texts share; returns them, and of each occurrence the phrase's number, else -1."""
    coded = contexts << 32 | tokens[ends]
    by_phrase = np.argsort(coded, kind="stable")  # within a phrase by group
    first = np.diff(coded[by_phrase], prepend=-1) != 0
    starts = np.flatnonzero(first)
    in_group = first | (np.diff(group_of[ends[by_phrase]], prepend=-1) != 0)
    kept = np.add.reduceat(in_group, starts, dtype=np.int64) >= least_texts if len(starts) else first
    times = np.diff(starts, append=len(ends))
    numbers = np.empty(len(ends), np.int64)
    numbers[by_phrase] = np.repeat(np.where(kept, np.cumsum(kept) - 1, -1), times)
    examples = by_phrase[starts[kept]]
    return _Phrases(contexts[examples], ends[examples], times[kept], np.bincount(contexts)), numbers


def _likeliest(
    phrases: _Phrases, shares: NDArray[np.float64], tokens: Integers, order: int
) -> tuple[Keys, Integers, NDArray[np.uint16]]:
    """Choose the phrase of each context with the largest share, among equals the one with the lowest token.

    Returns:
        The contexts' hashes, the tokens that follow, and their shares.
    """
    best = np.lexsort((-shares, phrases.contexts))  # stable: within a context phrases are in the order of their tokens
    best = best[np.diff(phrases.contexts[best], prepend=-1) != 0]
    ends = phrases.ends[best]
    keys = np.full(len(best), SEED, np.uint64)
    for back in range(1, order + 1):
        keys = lengthened(keys, tokens[ends - back])
    return keys, tokens[ends], np.rint(shares[best] * FULL).astype(np.uint16)
