"""Draft the next tokens of one sequence from several sources, and learn from each step which of them to ask."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from echovlm_edge.runtime.drafting.guess import Phrases
from echovlm_edge.runtime.drafting.own_text import OwnText
from echovlm_edge.runtime.drafting.trust import Trust

CERTAIN = 0.97  # that a form's text is divided into the tokens that it usually has
SURE = 0.8  # a guess that needs no other source's
PATIENCE, MOST_PAUSED = 4, 8  # after so many steps without an accepted token one is left out, and up to so many in turn


class Source(StrEnum):
    """Where a drafted token came from, in the order in which they are asked."""

    FORM = "form"  # what the text's form leaves hardly a choice about
    PROMPT = "prompt"  # the request's own text: its prompt, and what was written so far
    CLIENT = "client"  # what the client's finished replies said
    BUNDLE = "bundle"  # the phrases that came with the bundle


@dataclass(frozen=True)
class Drafted:
    """A drafted token, and who guessed it with which share."""

    token: int = field(repr=False)
    source: Source
    share: float


class Drafter:
    """Drafts of one sequence.

    Attributes:
        draft: the tokens of the step that is next or runs, none between steps.
        forced: those that the text's form leaves hardly a choice about; whoever knows sets them before each step.
    """

    def __init__(
        self, prompt: Sequence[Sequence[int]], others: Mapping[Source, Phrases], stop_token_ids: Collection[int]
    ) -> None:
        """Start with the text between a prompt's images, and with the sources besides the text itself."""
        self.draft: list[Drafted] = []
        self.forced: Sequence[int] = ()
        self._own = OwnText()
        self._sources: dict[Source, Phrases] = {Source.PROMPT: self._own, **others}
        self._trust = {source: Trust() for source in (Source.FORM, *self._sources)}
        self._trust[Source.FORM].accepted = self._trust[Source.FORM].expected
        self._stops = stop_token_ids
        self._text = list[int]()  # with the draft at its end
        self._likely = 1.0  # that all of the draft is accepted
        self._fruitless = self._paused = 0  # steps that were drafted for without success, and those to leave out
        for stretch in prompt:
            self._own.end_stretch()
            for token in stretch:
                self._own.append(token)
            self._text = [*stretch]

    @property
    def tokens(self) -> list[int]:
        """The draft's token ids."""
        return [drafted.token for drafted in self.draft]

    def is_due(self) -> bool:
        """Return whether to draft for the next step; once a step: guessing takes time too, where it has not helped for a while."""
        if self.forced:
            return True
        if self._paused:
            self._paused -= 1
            return False
        self._fruitless += 1
        self._paused = min(MOST_PAUSED, self._fruitless // PATIENCE)
        return True

    def guess(self, least: float) -> float | None:
        """Lengthen the draft by one token, as `Guesses.guess` does."""
        if self.draft and self.draft[-1].token in self._stops:
            return None
        best, found = least / self._likely, None
        if self.tokens == self.forced[: len(self.draft)] != self.forced:
            best = self._trust[Source.FORM].probability(CERTAIN)
            found = Drafted(self.forced[len(self.draft)], Source.FORM, CERTAIN)
        for source, phrases in self._sources.items():
            trust = self._trust[source]
            if trust.factor <= best:
                continue
            guess = phrases.following(self._text)
            if guess is not None and (probability := trust.probability(guess.share)) > best:
                best, found = probability, Drafted(guess.token, source, guess.share)
                if best >= SURE:
                    break
        if found is None:
            return None
        self.draft.append(found)
        self._text.append(found.token)
        self._likely *= best
        return self._likely

    def cut(self, tokens: int) -> None:
        """Keep the first so many tokens of the draft."""
        removed = len(self.draft) - tokens
        if removed > 0:
            del self.draft[tokens:], self._text[-removed:]

    def wrote(self, tokens: Sequence[int]) -> list[Drafted]:
        """Take the tokens into account that a step wrote, and end its draft; returns those of it that were accepted."""
        draft, self.draft, self._likely = self.draft, [], 1.0
        if draft:
            del self._text[-len(draft) :]
        accepted = list[Drafted]()
        for drafted, token in zip(draft, tokens, strict=False):
            self._trust[drafted.source].learn(drafted.share, drafted.token == token)
            if drafted.token == token:
                accepted.append(drafted)
        if accepted:
            self._fruitless = self._paused = 0
        for token in tokens:
            self._own.append(token)
        for trust in self._trust.values():
            trust.fade(len(tokens))
        self._text += tokens
        return accepted
