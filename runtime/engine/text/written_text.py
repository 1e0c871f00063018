"""The text of one generation as it is written: tokens in, whole characters and the tokens that they are made of out."""

from __future__ import annotations

from collections import deque

from echovlm_edge.runtime.contracts.request import TextDelta
from echovlm_edge.runtime.contracts.token_probability import TokenProbability
from echovlm_edge.runtime.engine.generation import Written
from echovlm_edge.runtime.engine.text.stop_text import StopText
from echovlm_edge.runtime.prompting.detokenize import TokenText


class WrittenText:
    """Collects a text up to its end or a stop text.

    Attributes:
        tokens: the ids of all tokens that were pushed.
        probabilities: of the tokens of the text so far, where they are reported. A token that begins in the text is one of them, even
            if a stop text ends it within the token; so are tokens without text.
    """

    def __init__(self, token_text: TokenText, stop: StopText) -> None:
        """Start empty."""
        self._names, self._stream, self._stop = token_text, token_text.stream(), stop
        self._text, self._next = list[str](), ""  # what was taken, and what is certain since then
        self._waiting = deque[tuple[int, TokenProbability]]()  # where each begins, in characters
        self._pushed = self._taken = 0  # characters
        self.tokens = list[int]()
        self.probabilities = list[TokenProbability]()

    @property
    def text(self) -> str:
        """All text that was taken."""
        return "".join(self._text)

    def push(self, written: Written) -> None:
        """Add the next token."""
        self.tokens.append(written.token_id)
        if written.likelihood:
            self._waiting.append((self._pushed, self._named(written)))
        self._add(self._stream.push(written.token_id))

    def take(self) -> TextDelta | None:
        """Take what has become certain of the text, None if that is nothing."""
        if not self._next:
            return None
        piece, self._next = self._next, ""
        self._text.append(piece)
        self._taken += len(piece)
        before = len(self.probabilities)
        while self._waiting and self._waiting[0][0] < self._taken:
            self.probabilities.append(self._waiting.popleft()[1])
        return TextDelta(piece, tuple(self.probabilities[before:]))

    def finish(self) -> TextDelta | None:
        """Take the rest of the text, at its end."""
        self._add(self._stream.finish())
        self._next += self._stop.finish()
        rest = self.take()
        if not self._stop.reached:
            self.probabilities += (probability for _, probability in self._waiting)  # tokens without text at the end
        self._waiting.clear()
        return rest

    def _add(self, piece: str) -> None:
        self._pushed += len(piece)
        self._next += self._stop.push(piece)

    def _named(self, written: Written) -> TokenProbability:
        assert written.likelihood
        alternatives = tuple(
            TokenProbability(token, *self._names.of(token), log_probability)
            for token, log_probability in written.likelihood.alternatives
        )
        own = written.likelihood.log_probability
        return TokenProbability(written.token_id, *self._names.of(written.token_id), own, alternatives)
