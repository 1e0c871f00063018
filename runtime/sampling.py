"""Logits to the next token: greedy, or temperature, top-k, top-p and repetition penalty from a seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.backends import Logits
from echovlm_edge.runtime.request import Sampling


class Sampler:
    """Chooses tokens for one generation; the same seed and logits give the same tokens."""

    def __init__(self, options: Sampling, prompt_ids: NDArray[np.int64], vocab_size: int) -> None:
        """`prompt_ids` int64 [n] count as seen for the repetition penalty."""
        self._options = options
        self._random = np.random.default_rng(options.seed)
        self._seen = np.zeros(vocab_size, dtype=bool)
        self._seen[prompt_ids] = True

    def choose(self, logits: Logits) -> int:
        """The next token for logits float32 [vocab_size]; plain greedy choice leaves them where they are."""
        options = self._options
        if options.repetition_penalty != 1:
            logits = self._penalised(np.asarray(logits))
        token = int(logits.argmax()) if options.temperature == 0 else self._draw(np.asarray(logits))
        self._seen[token] = True
        return token

    def _penalised(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        # Keskar et al. 2019 (CTRL), section 4.1: a seen token's logit is divided by the penalty, a negative one multiplied.
        penalty = self._options.repetition_penalty
        return np.where(self._seen, np.where(logits > 0, logits / penalty, logits * penalty), logits).astype(np.float32)

    def _draw(self, logits: NDArray[np.float32]) -> int:
        order, probabilities = candidates(logits, self._options)
        return int(self._random.choice(order, p=probabilities))


def candidates(logits: NDArray[np.float32], options: Sampling) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens that may be drawn, likeliest first, and their probabilities float64 summing to 1.

    Temperature first, then the `top_k` likeliest, then the fewest whose probabilities reach `top_p` (Holtzman et al.
    2019, section 3.1); at least one stays.
    """
    order = np.argsort(-logits, kind="stable")[: options.top_k or None]
    scaled = logits[order].astype(np.float64) / options.temperature
    probabilities = np.exp(scaled - scaled[0])
    probabilities /= probabilities.sum()
    reached = np.cumsum(probabilities) - probabilities < options.top_p
    kept = probabilities[reached]
    return order[reached], kept / kept.sum()
