"""Read each choice of a form after the prompt, to find how likely it is: a policy over tokens and logits, apart from the scheduler."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.backends import Floats, Logits
from echovlm_edge.runtime.engine.tokens.likelihood import log_softmax


class ChoiceScoring:
    """One choice after the other is read behind the prompt, in pieces, in the sequence's own slot; each overwrites the one before.

    Attributes:
        logits: those behind the prompt, float32 [vocab_size], for the text's first token.
        log_probabilities: of the choices that were read: of all tokens and of any stop token after them.
    """

    def __init__(
        self, choices: Sequence[Sequence[int]], stops: Collection[int], logits: Logits, piece_tokens: int
    ) -> None:
        """Read pieces of at most so many tokens; `logits` are those behind the prompt."""
        self._choices, self._stops, self._piece = choices, sorted(stops), piece_tokens
        self.logits: Floats = logits.copy()
        self._first = log_softmax(self.logits)
        self.log_probabilities = list[float]()
        self._begin()

    @property
    def done(self) -> bool:
        """Whether all choices were read."""
        return len(self.log_probabilities) == len(self._choices)

    @property
    def read(self) -> int:
        """How many tokens of the present choice are behind the prompt already."""
        return self._read

    @property
    def tokens(self) -> Sequence[int]:
        """The next piece of the present choice."""
        return self._choices[len(self.log_probabilities)][self._read : self._read + self._piece]

    def add(self, logits: Sequence[Logits]) -> None:
        """Take into account what follows each token of the piece that was read."""
        choice = self._choices[len(self.log_probabilities)]
        for row in logits:
            self._read += 1
            after = log_softmax(row)
            ended = self._read == len(choice)
            self._sum += float(np.logaddexp.reduce(after[self._stops]) if ended else after[choice[self._read]])
        if self._read == len(choice):
            self.log_probabilities.append(self._sum)
            if not self.done:
                self._begin()

    def _begin(self) -> None:
        self._read, self._sum = 0, float(self._first[self._choices[len(self.log_probabilities)][0]])


def normalized(log_probabilities: Sequence[float]) -> NDArray[np.float64]:
    """Return each one's share of all probabilities, float64 [n]; equal shares where all are 0."""
    logs = np.asarray(log_probabilities, np.float64)
    largest = logs.max()
    weights = np.exp(logs - largest) if np.isfinite(largest) else np.ones_like(logs)
    return weights / weights.sum()
