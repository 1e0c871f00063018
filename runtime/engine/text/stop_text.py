"""End a text before the first of some stop texts: a policy over pieces of text, apart from the loop that writes them."""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """Passes a text on piece by piece, without what could still become a stop text.

    Attributes:
        reached: whether a stop text has come; nothing is passed on from then on.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """End before the first of `stops`, none of which is empty; without any, every piece passes unchanged."""
        self._stops = tuple(stops)
        self._held = ""
        self.reached = False

    def push(self, piece: str) -> str:
        """Add the next piece; returns what is certain to belong to the text."""
        if not self._stops or self.reached:
            return "" if self.reached else piece
        text = self._held + piece
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.reached, self._held = True, ""
            return text[: min(found)]
        kept = max(_beginning(text, stop) for stop in self._stops)
        passed, self._held = text[: len(text) - kept], text[len(text) - kept :]
        return passed

    def finish(self) -> str:
        """Return what was held back, at the end of a text that no stop text ended."""
        rest, self._held = self._held, ""
        return rest


def _beginning(text: str, stop: str) -> int:
    """Count the characters at the end of `text` that `stop` begins with; fewer than it has."""
    return next(size for size in range(min(len(stop) - 1, len(text)), -1, -1) if text.endswith(stop[:size]))
