"""The scheduler's state of one generation: waiting, in a slot or parked, and how many tokens are done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from echovlm_edge.runtime.backends import Kept
from echovlm_edge.runtime.contracts.request import Priority
from echovlm_edge.runtime.drafting.drafter import Drafter
from echovlm_edge.runtime.engine.generation import Generation
from echovlm_edge.runtime.engine.tokens.choice_scoring import ChoiceScoring
from echovlm_edge.runtime.engine.tokens.sampling import Sampler


@dataclass(eq=False)
class SequenceState:
    """A generation's state. Only the decoder's thread changes it.

    Attributes:
        generation: the prompt and how to continue it.
        slot: the index of its KV cache; -1 while it has none.
        filled: tokens in the cache, or in `parked`.
        parked: its keys and values, while it is preempted, see `Parking`.
        joined: when it first got a slot, by time.perf_counter.
        stays: whether it must keep its slot, because its keys and values could not be copied.
        sampler: chooses its tokens, once it is prefilled.
        token: the id of the last token that it wrote.
        position: that token's M-RoPE position.
        left: how many tokens it may still write.
        written: the ids of all tokens that it wrote.
        drafter: guesses its next tokens, where that may pay.
        scoring: reads a form's choices, before the text is written.
    """

    generation: Generation
    slot: int = -1
    filled: int = 0
    parked: Kept | None = field(default=None, repr=False)
    joined: float = 0.0
    stays: bool = False
    sampler: Sampler | None = None
    token: int = field(default=-1, repr=False)
    position: int = -1
    left: int = 0
    written: list[int] = field(default_factory=list, repr=False)
    drafter: Drafter | None = field(default=None, repr=False)
    scoring: ChoiceScoring | None = field(default=None, repr=False)

    @property
    def priority(self) -> Priority:
        """The generation's priority."""
        return self.generation.priority

    @property
    def target(self) -> int:
        """How many tokens have to be prefilled."""
        return self.generation.target

    @property
    def prefilled(self) -> bool:
        """Whether all of them are prefilled."""
        return self.filled >= self.target

    @property
    def decoding(self) -> bool:
        """Whether it is prefilled, and has rows in every step: it gains tokens, or its form's choices are read."""
        return self.sampler is not None

    @property
    def sits_out(self) -> bool:
        """Whether it has no rows in the next step, because its form's masks are still being computed."""
        return self.generation.form is not None and self.generation.form.busy

    @property
    def repeats(self) -> bool:
        """Whether its next step is one that it has had, with the same draft: its form's masks came too late for that one."""
        return self.decoding and self.generation.form is not None and self.generation.form.ready

    @property
    def draft(self) -> list[int]:
        """The guesses of its next tokens that the next step verifies."""
        return self.drafter.tokens if self.drafter else []

    @property
    def cached(self) -> int:
        """Tokens whose keys and values are in the cache: those of a choice that is being read too, which `filled` does not count."""
        return self.filled + (self.scoring.read if self.scoring else 0)

    @property
    def next_tokens(self) -> Sequence[int]:
        """The tokens whose rows it has in the next step."""
        return self.scoring.tokens if self.scoring else [self.token, *self.draft]

    @property
    def background(self) -> bool:
        """Whether it prepares a study that no request has asked about yet."""
        return self.priority is Priority.BACKGROUND
