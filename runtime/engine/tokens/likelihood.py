"""Read from logits how likely a token was, and which were the likeliest."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.backends import Logits


@dataclass(frozen=True)
class Likelihood:
    """The log probability of a written token, and the likeliest tokens of its place with theirs, the likeliest first."""

    log_probability: float = field(repr=False)
    alternatives: tuple[tuple[int, float], ...] = field(default=(), repr=False)


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """Return the logarithms of the softmax of logits [vocab_size] in float64; a row on a device is copied from it."""
    values = np.asarray(logits).astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    return values


def likelihood(logits: Logits, token: int, count: int) -> Likelihood:
    """Return the likelihood of `token` and of the `count` likeliest tokens, equal ones by id.

    It is that of the logits float32 [vocab_size] as the decoder computed them, see `log_softmax`.
    """
    values = log_softmax(logits)
    likeliest = list[int]()
    if count := min(count, len(values)):
        least = np.partition(values, len(values) - count)[len(values) - count]
        tokens = np.flatnonzero(values >= least)
        likeliest = tokens[np.argsort(-values[tokens], kind="stable")][:count].tolist()
    return Likelihood(float(values[token]), tuple((one, float(values[one])) for one in likeliest))
