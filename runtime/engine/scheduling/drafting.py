"""Draft tokens for the sequences in a step, and keep what becomes of them: what the scheduler knows of `drafting`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from echovlm_edge.runtime.backends import SlotCache
from echovlm_edge.runtime.drafting.drafter import Drafter, Source
from echovlm_edge.runtime.drafting.guess import Phrases
from echovlm_edge.runtime.drafting.plan import packed, padded, plan
from echovlm_edge.runtime.drafting.reply_phrases import ReplyPhrases
from echovlm_edge.runtime.drafting.row_cost import RowCost
from echovlm_edge.runtime.engine.generation import Generation
from echovlm_edge.runtime.engine.model import Model
from echovlm_edge.runtime.engine.scheduling.row_times import measure_rows
from echovlm_edge.runtime.engine.scheduling.sequence_state import SequenceState
from echovlm_edge.runtime.prompting.prompt import Prompt

REPLY_BEGINS = 4  # of the prompt's last tokens, which the phrases of replies begin with


@dataclass(frozen=True)
class DraftingStats:
    """Tokens that were drafted and accepted since the start, by source; steps that a sequence did not need; bytes of replies."""

    drafted: Mapping[Source, int] = field(default_factory=dict)
    accepted: Mapping[Source, int] = field(default_factory=dict)
    saved_steps: int = 0
    reply_bytes: int = 0


class Drafting:
    """Drafts for all sequences of one scheduler, whose thread alone uses it; any thread may ask for `stats`."""

    def __init__(self, model: Model, replies: ReplyPhrases, bundle_phrases: Phrases | None) -> None:
        """Draft nothing until it is known what rows cost.

        Args:
            model: its backend, rotary positions and stop tokens.
            replies: what the clients' finished replies said.
            bundle_phrases: those that came with the bundle.
        """
        self._model, self._replies, self._bundle_phrases = model, replies, bundle_phrases
        self._cost: RowCost | None = None
        self._rows = packed if model.backend.packs_rows else padded
        self._drafted, self._accepted, self._saved = Counter[Source](), Counter[Source](), 0

    def measure(self, slots: Sequence[SlotCache], closed: Callable[[], bool]) -> None:
        """Measure what rows cost, on slots that no sequence has yet."""
        if self._model.backend.step_tokens(1) > 1:
            self._cost = measure_rows(self._model.backend, self._model.rotary, slots, closed)

    def begin(self, generation: Generation) -> Drafter | None:
        """Return what drafts for a generation whose prompt has been read."""
        if self._cost is None:
            return None
        others = {Source.CLIENT: self._replies.of(generation.scope), Source.BUNDLE: self._bundle_phrases}
        found = {source: phrases for source, phrases in others.items() if phrases is not None}
        return Drafter(_stretches(generation.prompt), found, self._model.stop_token_ids)

    def draft(self, writing: Sequence[SequenceState], beside: int, max_sequence: int) -> float:
        """Draft for all sequences of a step, beside so many rows of prompts, in slots of so many tokens.

        Returns:
            How many times as long the call takes with the drafts as without them.
        """
        longest = self._model.backend.step_tokens(len(writing)) - 1
        if self._rows is padded:  # a sequence's padding ends before the slot's last position, as its draft does
            longest = min([longest, *(max_sequence - 2 - sequence.filled for sequence in writing)])
        for sequence in writing:
            if sequence.drafter and sequence.repeats:
                sequence.drafter.cut(max(0, longest))
        drafting = [sequence for sequence in writing if sequence.drafter and not sequence.repeats]
        drafters = [sequence.drafter for sequence in drafting if sequence.drafter]
        forms = [sequence.generation.form for sequence in drafting]
        for drafter, form in zip(drafters, forms, strict=True):
            if form:
                drafter.forced = form.forced()
        due = [drafter.is_due() for drafter in drafters]
        if not any(due):
            return 1.0
        if self._cost is None or not drafters or longest <= 0:
            return 1.0
        most = [min(longest, sequence.left - 1) for sequence in drafting]
        beside += sum(len(sequence.next_tokens) for sequence in writing if sequence not in drafting)
        drafted = plan(drafters, beside, self._cost, self._rows, most)
        for place, (drafter, form) in enumerate(zip(drafters, forms, strict=True)):
            drafter.cut(drafted[place])
            if form and drafter.draft:  # what the form forbids is not verified
                drafted[place] = form.valid(drafter.tokens)
                drafter.cut(drafted[place])
        return self._cost(beside + self._rows(drafted)) / self._cost(beside + len(drafted)) if any(drafted) else 1.0

    def wrote(self, sequence: SequenceState, tokens: Sequence[int]) -> None:
        """Take the tokens into account that a step wrote, at least one."""
        drafter = sequence.drafter
        if drafter is None:
            return
        for drafted in drafter.draft:
            self._drafted[drafted.source] += 1
        self._saved += len(tokens) - 1
        for accepted in drafter.wrote(tokens):
            self._accepted[accepted.source] += 1

    def finished(self, sequence: SequenceState) -> None:
        """Remember what a reply said for the client's next ones."""
        prompt = sequence.generation.prompt.token_ids[-REPLY_BEGINS:]
        self._replies.put(sequence.generation.scope, [*prompt.tolist(), *sequence.written])

    def stats(self) -> DraftingStats:
        """Its counters and gauges."""
        accepted = {
            source: self._accepted[source] for source in Source
        }  # before those that were drafted, which are more
        drafted = {source: self._drafted[source] for source in Source}
        return DraftingStats(drafted, accepted, self._saved, self._replies.bytes)


def _stretches(prompt: Prompt) -> list[list[int]]:
    """Return the tokens of a prompt's text before, between and after its images."""
    texts = np.ones(len(prompt.token_ids), bool)
    texts[prompt.image_rows] = False
    ends = np.flatnonzero(np.diff(texts)) + 1
    parts = zip(np.split(prompt.token_ids, ends), np.split(texts, ends), strict=True)
    return [tokens.tolist() for tokens, text in parts if text.all()]
