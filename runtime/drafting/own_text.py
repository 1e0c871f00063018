"""What followed each few tokens of one text so far: the cheapest source of drafts, for what a report says twice."""

from __future__ import annotations

from collections.abc import Sequence

from echovlm_edge.runtime.drafting.guess import Guess

ORDERS = 4, 3, 2  # tokens of a context, the longest first
TOKEN_BYTES = 640  # memory for a token of a text that never repeats itself: 530 measured, more while the table grows


class OwnText:
    """The text of one sequence as a source of drafts, a `Phrases`; it grows by a token at a time."""

    def __init__(self) -> None:
        """Start without any text."""
        self._followed: dict[
            tuple[int, ...], tuple[int, int, int]
        ] = {}  # the last token, how often in turn, of how many
        self._last: tuple[int, ...] = ()

    def append(self, token: int) -> None:
        """Take the text's next token into account."""
        last, followed = self._last, self._followed
        for order in ORDERS:
            if len(last) >= order:
                context = last[-order:]
                before, times, total = followed.get(context, (token, 0, 0))
                followed[context] = token, times + 1 if before == token else 1, total + 1
        self._last = (*last[1 - ORDERS[0] :], token)

    def end_stretch(self) -> None:
        """Take into account that the next token does not follow the one before, as after an image."""
        self._last = ()

    def following(self, tokens: Sequence[int]) -> Guess | None:
        """Guess what followed the longest of the ends of `tokens` that the text has, the last time."""
        last = tuple(tokens[-ORDERS[0] :])
        for order in ORDERS:
            if found := self._followed.get(last[-order:]):
                token, times, total = found
                return Guess(token, times / (total + 1), order)
        return None
