"""How far a source's guesses about one text have held lately."""

from __future__ import annotations

from dataclasses import dataclass

REMEMBERED = 0.9  # of what was learnt, at each guess that is verified: the last ten or so decide
KEPT = 0.99  # and at each token of the text: a source that was wrong is asked again after some dozens
ACCEPTED, EXPECTED = 0.2, 0.3  # in advance: a source has to show soon what it is worth
MOST = 2.0  # times as likely as a source says
SUREST = 0.98  # no guess is surer


@dataclass
class Trust:
    """Accepted tokens of a source, and how many it expected; both fade.

    Attributes:
        accepted: of those that were verified.
        expected: the sum of their shares.
    """

    accepted: float = ACCEPTED
    expected: float = EXPECTED

    @property
    def factor(self) -> float:
        """How many times as likely as its share a guess is accepted: what no guess's probability is above."""
        return min(MOST, self.accepted / self.expected)

    def probability(self, share: float) -> float:
        """Return how likely a guess of this share is accepted."""
        return min(SUREST, share * self.factor)

    def learn(self, share: float, accepted: bool) -> None:
        """Take a verified guess into account."""
        self.expected = REMEMBERED * self.expected + share
        self.accepted = REMEMBERED * self.accepted + accepted

    def fade(self, tokens: int) -> None:
        """Forget some of it in so many tokens of the text, towards what it was at the start."""
        kept = KEPT**tokens
        self.accepted = ACCEPTED + (self.accepted - ACCEPTED) * kept
        self.expected = EXPECTED + (self.expected - EXPECTED) * kept
