"""How far a source's guesses about one text have held lately."""

from __future__ import annotations

from dataclasses import dataclass

REMEMBERED = 0.9  # of what was learnt, at each guess that is verified: the last ten or so decide
KEPT = 0.98  # and at each token of the text: a source that was wrong is asked again after some dozens
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

    def probability(self, share: float) -> float:
        """Return how likely a guess of this share is accepted."""
        return min(SUREST, share * min(MOST, self.accepted / self.expected))

    def learn(self, share: float, accepted: bool) -> None:
        """Take a verified guess into account."""
        self.expected = REMEMBERED * self.expected + share
        self.accepted = REMEMBERED * self.accepted + accepted

    def fade(self) -> None:
        """Forget some of it, towards what it was at the start."""
        self.accepted += (ACCEPTED - self.accepted) * (1 - KEPT)
        self.expected += (EXPECTED - self.expected) * (1 - KEPT)
