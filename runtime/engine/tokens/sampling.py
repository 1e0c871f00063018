"""Choose the next token from logits: greedy, or with temperature, top-k, top-p and repetition penalty from a seed."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.backends import Logits
from echovlm_edge.runtime.contracts.errors import UnusableNumbers
from echovlm_edge.runtime.contracts.request import Sampling
from echovlm_edge.runtime.engine.forms.form_state import Mask, allowed_tokens, is_allowed

WEIGHT_BITS = 35  # of the likeliest token's weight
LARGEST_VOCABULARY = 1 << 18  # sums of this many weights are below 2^53, and therefore exact in float64 in any order
BUCKETS = 4096  # for `_nucleus`; any number gives the same tokens


class Sampler:
    """Chooses tokens for one generation; the same seed and logits give the same tokens.

    Sampling is defined in integers, so that the result does not depend on the order of the computation. The definition must never
    change, because the same seed must give the same text in all versions:

    1. The logit of a token that has occurred is divided by the penalty, or multiplied if it is negative (float32).
    2. A token's weight is exp((logit - largest logit) / temperature) * 2^35 in float64, rounded to a whole number.
    3. Tokens are ranked by logit, highest first; ties by id, lowest first. `top_k` keeps the first k. Of these, `top_p` keeps the
       shortest leading part whose weights add up to at least `top_p` of their total.
    4. r is the next 64 bits of PCG64(seed) times the sum of the kept weights, divided by 2^64, rounded down. The token is the
       first kept one, in order of ids, at which the running sum of weights is above r.

    Where a form allows some tokens only, the others are no candidates: steps 2 to 4 are as if they were not there.
    """

    def __init__(self, options: Sampling, prompt_ids: NDArray[np.int64], vocab_size: int) -> None:
        """Start from a prompt; the repetition penalty also applies to its tokens `prompt_ids`, int64 [n]."""
        assert vocab_size <= LARGEST_VOCABULARY
        self._options = options
        self._random = np.random.PCG64(options.seed)
        self._seen = np.zeros(vocab_size, dtype=bool)
        self._seen[prompt_ids] = True

    def choose(self, logits: Logits, allowed: Mask | None = None) -> int:
        """Choose the next token for logits float32 [vocab_size], among those that a form allows.

        A greedy choice without a penalty copies logits from the device only if the largest one's token is not allowed.

        Raises:
            UnusableNumbers: the logits contain NaN or positive infinity, or nothing but negative infinity.
        """
        options = self._options
        if options.repetition_penalty != 1:
            logits = self._penalised(np.asarray(logits))
        token = self._of_all(logits) if allowed is None else self._of_allowed(logits, allowed)
        self._seen[token] = True
        return token

    def _penalised(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        # Keskar et al. 2019 (CTRL), section 4.1: a seen token's logit is divided by the penalty, or multiplied if negative.
        penalty, seen = np.float32(self._options.repetition_penalty), np.flatnonzero(self._seen)
        penalised, values = logits.copy(), logits[seen]
        penalised[seen] = np.where(values > 0, values / penalty, values * penalty)
        return penalised

    def _of_all(self, logits: Logits) -> int:
        return best(logits) if self._options.temperature == 0 else self._draw(np.asarray(logits))

    def _of_allowed(self, logits: Logits, allowed: Mask) -> int:
        largest = best(logits)  # raises where they are no numbers, whatever is allowed
        if self._options.temperature == 0 and is_allowed(allowed, largest):
            return largest
        tokens = allowed_tokens(allowed, len(self._seen))
        return int(tokens[self._of_all(np.asarray(logits)[tokens])])

    def _draw(self, logits: NDArray[np.float32]) -> int:
        tokens, weights = candidates(logits, self._options)
        sums = np.cumsum(weights)
        drawn = self._random.random_raw() * int(sums[-1]) >> 64
        return int(tokens[np.searchsorted(sums, drawn, side="right")])


def best(logits: Logits) -> int:
    """Return the likeliest token of logits float32 [vocab_size], the first of equal ones.

    Raises:
        UnusableNumbers: see `Sampler.choose`. NaN is numpy's largest, so that it is enough to check the chosen value.
    """
    token = int(logits.argmax())
    if isinstance(logits, np.ndarray) and not math.isfinite(logits[token]):
        raise UnusableNumbers
    return token


def usable(logits: Logits) -> bool:
    """Return whether `best` finds a token."""
    try:
        best(logits)
    except UnusableNumbers:
        return False
    return True


def candidates(logits: NDArray[np.float32], options: Sampling) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the tokens that may be drawn, int64 [n] in order of ids, and their weights, whole numbers in float64 [n].

    The steps are those of `Sampler`. `top_p` is that of Holtzman et al. 2019, section 3.1; at least one token stays.

    Raises:
        UnusableNumbers: see `Sampler.choose`.
    """
    largest = logits[best(logits)]
    tokens = _likeliest(logits, options.top_k) if 0 < options.top_k < len(logits) else None
    chosen = logits if tokens is None else logits[tokens]
    # In place: allocating memory takes longer than the arithmetic.
    nats = chosen.astype(np.float64)  # logit minus the largest one: 0 or less
    nats -= largest
    with np.errstate(over="ignore"):  # an overflow to minus infinity is right: its weight is 0
        nats /= options.temperature
    weights = np.exp(nats)
    weights *= 1 << WEIGHT_BITS
    np.rint(weights, out=weights)
    if options.top_p < 1:
        kept = _nucleus(chosen, nats, weights, options.top_p)
        tokens, weights = kept if tokens is None else tokens[kept], weights[kept]
    return np.arange(len(weights)) if tokens is None else tokens, weights


def _likeliest(logits: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Return the `count` highest ranked tokens, in order of ids."""
    least = np.partition(logits, len(logits) - count)[len(logits) - count]
    tokens = np.flatnonzero(logits >= least)
    if (surplus := len(tokens) - count) > 0:
        tied = np.flatnonzero(logits[tokens] == least)
        tokens = np.delete(tokens, tied[-surplus:])
    return tokens


def _nucleus(
    logits: NDArray[np.float32], nats: NDArray[np.float64], weights: NDArray[np.float64], top_p: float
) -> NDArray[np.int64]:
    """Return the indices, ascending, of the fewest highest ranked tokens whose weights add up to `top_p` of all weights.

    The tokens are sorted into buckets by logit. Only those in the bucket in which the sum is reached need a full sort. `nats`
    is overwritten.
    """
    needed = top_p * weights.sum()
    per_nat = BUCKETS / (math.log(2) * (WEIGHT_BITS + 2))  # a token further below the likeliest has weight 0
    nats *= -per_nat
    bucket = np.minimum(nats, BUCKETS - 1, out=nats).astype(np.intp)
    reached = np.cumsum(np.bincount(bucket, weights, BUCKETS))
    last = int(np.searchsorted(reached, needed))
    inside = bucket < last
    tied = np.flatnonzero(bucket == last)
    tied = tied[np.argsort(-logits[tied], kind="stable")]
    before = (reached[last - 1] if last else 0.0) + np.cumsum(weights[tied]) - weights[tied]
    inside[tied[before < needed]] = True
    return np.flatnonzero(inside)
