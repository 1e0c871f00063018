"""A token of a text, and how likely the model held it."""

from __future__ import annotations

from dataclasses import dataclass, field

MOST_ALTERNATIVES = 20


@dataclass(frozen=True)
class TokenProbability:
    """A token and its log probability.

    The probability is the model's own: the softmax of the decoder's logits in float64, before temperature, penalty and any other
    rule of choosing. So it is the same for a greedy and a sampled text, and need not be the largest one of its place.

    Attributes:
        token_id: its id.
        text: of the token, or its name if it is a special one; a part of a character is U+FFFD.
        data: its bytes in UTF-8; none of a special token. Joined, they are the text's.
        log_probability: natural logarithm, at most 0.
        alternatives: the likeliest tokens of the same place, the likeliest first and equal ones by id; this one may be among them.
    """

    token_id: int = field(repr=False)
    text: str = field(repr=False)
    data: bytes = field(repr=False)
    log_probability: float = field(repr=False)
    alternatives: tuple[TokenProbability, ...] = field(default=(), repr=False)
