"""Define what a source of drafts answers: the token that most often followed a text's last tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Guess:
    """The token that most often followed.

    Attributes:
        token: its id.
        share: the estimated probability that it follows, between 0 and 1.
        order: how many of the text's last tokens matched.
    """

    token: int = field(repr=False)
    share: float
    order: int


class Phrases(Protocol):
    """A source of drafts."""

    def following(self, tokens: Sequence[int]) -> Guess | None:
        """Guess what follows `tokens`, the text so far, of which only the last few matter; None where nothing like them is known."""
        ...
