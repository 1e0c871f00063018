"""A decoder without weights: each row's logits are a hash of the text before it, so that the scheduler runs thousands of steps a second.

Most logits follow from the last two tokens, as in text that repeats its phrases; some from all tokens and their positions, so that a
token in a wrong place, or one that should have been forgotten, shows in the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.backends import Floats, Kept, Logits, SlotCache, SlotMemory, SlotRows, move_by_copies
from echovlm_edge.runtime.contracts.request import FinishReason, Sampling
from echovlm_edge.runtime.drafting.guess import Guess, Phrases
from echovlm_edge.runtime.drafting.reply_phrases import ReplyPhrases
from echovlm_edge.runtime.drafting.row_cost import RowCost
from echovlm_edge.runtime.engine.caching.reuse import PrefixStore
from echovlm_edge.runtime.engine.generation import Generation, Left, Written
from echovlm_edge.runtime.engine.model import Model
from echovlm_edge.runtime.engine.scheduling.drafting import Drafting
from echovlm_edge.runtime.engine.scheduling.scheduler import Scheduler
from echovlm_edge.runtime.prompting.prompt import Prompt
from echovlm_edge.runtime.prompting.rotary import Angles

VOCABULARY, STOP = 40, 0
CHEAP = RowCost({1: 1.0, 16: 1.2})  # rows that cost nearly nothing: much is drafted


@dataclass(frozen=True)
class HashedKept:
    """Token ids and positions, [2, tokens]."""

    values: NDArray[np.float64]

    @property
    def tokens(self) -> int:
        return self.values.shape[1]

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    def first(self, tokens: int) -> HashedKept:
        return HashedKept(self.values[:, :tokens])

    def spilled(self) -> HashedKept:
        return self


@dataclass(frozen=True)
class HashedSlot:
    """A slot whose keys and values are token ids and positions, [2, max_sequence]."""

    number: int
    values: NDArray[np.float64]
    token_bytes: int = 16

    @property
    def max_sequence(self) -> int:
        return self.values.shape[1]

    def clear(self, tokens: int, start: int = 0) -> None:
        self.values[:, start:tokens] = 0

    def read(self, tokens: int, start: int = 0) -> HashedKept:
        return HashedKept(self.values[:, start:tokens].copy())

    def park(self, tokens: int) -> HashedKept:
        return self.read(tokens)

    def write(self, kept: Kept, start: int = 0) -> None:
        assert isinstance(kept, HashedKept)
        self.values[:, start : start + kept.tokens] = kept.values

    def move(self, target: SlotCache, tokens: int, target_tokens: int) -> None:
        move_by_copies(self, target, tokens, target_tokens)


@dataclass
class HashedDecoder:
    """A `Backend` whose embeddings are token ids, and whose angles are positions.

    Attributes:
        seed: of the hash.
        packs_rows: whether a call takes any rows; else a rectangle, padded behind shorter sequences.
        poison: a token after which a hidden state is NaN, though its own logits are chosen from as the others'.
        fails: whether a call runs out of memory.
        calls: the rows of each call, by sequence.
        poisoned: how many rows were NaN from then on.
    """

    seed: int = 0
    packs_rows: bool = True
    poison: int | None = None
    fails: Callable[[Sequence[SlotRows]], bool] = lambda rows: False
    calls: list[list[int]] = field(default_factory=list)
    poisoned: int = 0

    def embed(self, token_ids: NDArray[np.int64]) -> Floats:
        return token_ids[:, None].astype(np.float32)

    def new_slots(self, memory: SlotMemory) -> list[HashedSlot]:
        return [HashedSlot(number, np.zeros((2, memory.max_sequence))) for number in range(memory.count)]

    def step_tokens(self, sequences: int) -> int:
        return 16 if self.packs_rows else 8

    def turn(self, rows: Sequence[SlotRows]) -> list[list[Logits]]:
        self.calls.append([part.tokens for part in rows])
        if self.fails(rows):
            raise MemoryError
        longest = max(part.tokens for part in rows)
        return [self._run(part, 0 if self.packs_rows else longest - part.tokens) for part in rows]

    def _run(self, part: SlotRows, padding: int) -> list[Logits]:
        slot, end = part.slot, part.past + part.tokens
        assert isinstance(slot, HashedSlot)
        assert end + padding < slot.max_sequence + (padding == 0), "beyond the slot"
        slot.values[0, part.past : end] = part.embeddings[:, 0]
        slot.values[1, part.past : end] = part.angles.cos[:, 0]
        slot.values[:, end : end + padding] = -1
        if self.poison is not None and (found := np.flatnonzero(part.embeddings[:, 0] == self.poison)).size:
            slot.values[:, part.past + found[0] : end + padding] = np.nan
            self.poisoned += 1
        return [self._logits(slot, end - part.logits + row + 1) for row in range(part.logits)]

    def _logits(self, slot: HashedSlot, seen: int) -> Floats:
        behind = 0 if self.packs_rows else 0 * slot.values[:, seen:].sum()  # attention weighs by zero what lies behind
        if np.isnan(slot.values[:, :seen]).any() or np.isnan(behind):
            return np.full(VOCABULARY, np.nan, np.float32)
        near = slot.values[0, max(0, seen - 2) : seen].astype(np.int64).tolist()
        random = np.random.default_rng([self.seed, *near])
        logits = random.normal(size=VOCABULARY).astype(np.float32)
        if random.random() < 0.2:
            weights = np.arange(1, seen + 1)
            far = int(abs((slot.values[:, :seen] * weights).sum())) + seen
            logits = np.random.default_rng([self.seed, far]).normal(size=VOCABULARY).astype(np.float32)
        return logits

    def encode(self, *_: Any) -> Floats:
        raise NotImplementedError

    project = decode = encode


class Positions:
    """Rotary angles that are the positions themselves."""

    def angles(self, positions: NDArray[np.int64]) -> Angles:
        return Angles(positions.T.astype(np.float32), positions.T.astype(np.float32))


@dataclass
class Known:
    """Phrases that know what follows the last two tokens, or lie about it."""

    texts: Sequence[Sequence[int]]
    lies: bool = False
    asked: int = 0

    def __post_init__(self) -> None:
        self._follow = {tuple(text[at - 2 : at]): text[at] for text in self.texts for at in range(2, len(text))}

    def following(self, tokens: Sequence[int]) -> Guess | None:
        self.asked += 1
        if self.lies:
            return Guess((tokens[-1] * 7 + self.asked) % VOCABULARY, 0.95, 6)
        token = self._follow.get(tuple(tokens[-2:]))
        return None if token is None else Guess(token, 0.9, 2)


def scheduler(
    backend: HashedDecoder,
    phrases: Phrases | None = None,
    drafting: bool = True,
    slots: int = 4,
    max_sequence: int = 200,
    cost: RowCost = CHEAP,
    replies: ReplyPhrases | None = None,
    stops: frozenset[int] = frozenset({STOP}),
) -> Scheduler:
    """A scheduler over this decoder, to whose drafting rows cost what they are said to."""
    model = Model(backend, Positions(), VOCABULARY, stops)  # type: ignore[arg-type]
    made = None
    if drafting:
        made = Drafting(model, replies or ReplyPhrases(0), phrases)
        made.measure = lambda *_: setattr(made, "_cost", cost)  # type: ignore[method-assign]
    memory = backend.new_slots(SlotMemory(slots, max_sequence))
    return Scheduler(model, backend, memory, PrefixStore(1 << 20), 1 << 20, drafting=made)


def generation(
    prompt: Sequence[int], sampling: Sampling, stopped: Callable[[], bool] = lambda: False, **options: Any
) -> Generation:
    """A prompt of these tokens, at positions of their own."""
    ids = np.array(prompt, np.int64)
    rendered = Prompt(ids, np.tile(2 * np.arange(len(ids)), (3, 1)), np.array([], np.int64), 2 * len(ids) + 5)

    def embed(start: int, stop: int) -> Floats:
        return ids[start:stop, None].astype(np.float32)

    return Generation(rendered, embed, (), sampling, stopped, **options)


def followed(asked: Generation) -> tuple[list[int], FinishReason | None]:
    """Wait for a generation; returns its tokens and how it finished, None if it was stopped. Raises what ended it."""
    tokens = list[int]()
    while True:
        for progress in asked.outbox.take(60):
            match progress:
                case Exception():
                    raise progress
                case Left():
                    return tokens, None
                case Written():
                    tokens.append(progress.token_id)
                    if progress.finish:
                        return tokens, progress.finish
