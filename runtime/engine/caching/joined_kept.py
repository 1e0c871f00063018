"""Keys and values of a sequence's first tokens in several pieces, so that prompts with the same beginning share its copy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from echovlm_edge.runtime.backends import Kept, SlotCache


@dataclass(frozen=True)
class JoinedKept:
    """Copies that follow each other, the first one from a sequence's first token on; each of a multiple of BLOCK tokens.

    Nothing changes a copy, so that several may share one; its memory is free once nothing has it.
    """

    parts: tuple[Kept, ...] = field(default=(), repr=False)

    @property
    def tokens(self) -> int:
        """How many tokens' keys and values it has."""
        return sum(part.tokens for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Its size in bytes, those that it shares included."""
        return sum(part.nbytes for part in self.parts)

    def first(self, tokens: int) -> JoinedKept:
        """Return those of the first `tokens` tokens, a multiple of BLOCK; no copy is made."""
        return JoinedKept(tuple(self._first(tokens)))

    def _first(self, tokens: int) -> Iterator[Kept]:
        for part in self.parts:
            if tokens <= 0:
                return
            yield part if part.tokens <= tokens else part.first(tokens)
            tokens -= part.tokens

    def whole(self, tokens: int) -> JoinedKept:
        """Return the leading copies that lie within the first `tokens` tokens: a part of one would hold the memory of all of it."""
        parts, end = list[Kept](), 0
        for part in self.parts:
            end += part.tokens
            if end > tokens:
                break
            parts.append(part)
        return JoinedKept(tuple(parts))

    def followed_by(self, rest: Kept) -> JoinedKept:
        """Return these and the copy of the tokens after them."""
        return JoinedKept((*self.parts, rest))

    def spilled(self) -> JoinedKept:
        """Return copies in the host's memory, as `Kept.spilled` does."""
        return JoinedKept(tuple(part.spilled() for part in self.parts))

    def write(self, slot: SlotCache) -> None:
        """Write all of them to a slot's first positions."""
        start = 0
        for part in self.parts:
            slot.write(part, start)
            start += part.tokens
