"""Continuous batching: generations join and leave the batch between decode steps; each step adds tokens to all running ones."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from traceback import format_tb

import numpy as np

from echovlm_edge.runtime.backends import Backend, Logits, SlotCache, SlotRows
from echovlm_edge.runtime.contracts.errors import SHUT_DOWN, Unavailable, UnusableNumbers, fresh
from echovlm_edge.runtime.contracts.request import FinishReason, Priority
from echovlm_edge.runtime.engine.at_exit import close_at_exit
from echovlm_edge.runtime.engine.caching.joined_kept import JoinedKept
from echovlm_edge.runtime.engine.caching.reuse import BLOCK, PrefixStore
from echovlm_edge.runtime.engine.forms.late_masks import wait_for_any, wait_for_masks
from echovlm_edge.runtime.engine.generation import (
    Generation,
    Joined,
    Left,
    Prefilled,
    Progress,
    Queued,
    Scored,
    Written,
)
from echovlm_edge.runtime.engine.model import Model
from echovlm_edge.runtime.engine.scheduling import policy
from echovlm_edge.runtime.engine.scheduling.drafting import Drafting, DraftingStats
from echovlm_edge.runtime.engine.scheduling.parking import Parking
from echovlm_edge.runtime.engine.scheduling.sequence_state import SequenceState
from echovlm_edge.runtime.engine.scheduling.slots import SlotTable
from echovlm_edge.runtime.engine.scheduling.turn_time import TurnTime
from echovlm_edge.runtime.engine.tokens.choice_scoring import ChoiceScoring
from echovlm_edge.runtime.engine.tokens.likelihood import likelihood
from echovlm_edge.runtime.engine.tokens.sampling import Sampler, best, usable
from echovlm_edge.runtime.resources.fair_queue import FairQueue
from echovlm_edge.runtime.resources.thread_priority import lower_thread_priority

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SchedulerStats:
    """Slots in use, waiting and parked generations, bytes of the parked ones; tokens and steps since the start, and drafts."""

    slots: int
    busy: int
    waiting: int
    parked: int
    parked_bytes: int
    prefilled_tokens: int
    reused_tokens: int
    written_tokens: int
    steps: int
    drafting: DraftingStats


class Scheduler:
    """Owns the decoder and the thread that runs it.

    Each turn releases stopped sequences, admits waiting ones, and runs a chunk of one prompt together with a token and a draft of
    every sequence that is prefilled. An error in one sequence ends that sequence only. The lock is held for moments only: keys and
    values are copied without it.
    """

    def __init__(
        self,
        model: Model,
        backend: Backend,
        slots: Sequence[SlotCache],
        prefixes: PrefixStore,
        parked_bytes: int,
        most_seconds: float | None = None,
        drafting: Drafting | None = None,
    ) -> None:
        """Start the decoder's thread.

        Args:
            model: its rotary positions and tokens.
            backend: runs the decoder.
            slots: all caches of one call of `new_slots`.
            prefixes: keys and values of prompts that were read.
            parked_bytes: the budget of `Parking`.
            most_seconds: what a turn may take while a prompt is read and others write; see `policy.rows_beside`.
            drafting: drafts tokens, None to write each in a step of its own.
        """
        self._model, self._backend, self._prefixes = model, backend, prefixes
        self._most_seconds, self._turn_time, self._drafting = most_seconds, TurnTime(), drafting
        self._table = SlotTable(slots)
        self._parking = Parking(parked_bytes, slots[0].token_bytes, self._table.max_sequence)
        self._alive: dict[SequenceState, None] = {}  # submitted and not ended
        self._running: list[SequenceState] = []  # those in slots
        self._waiting: FairQueue[SequenceState] = FairQueue()  # new ones and parked ones
        self._wake = threading.Condition()
        self._closed: str | None = None  # the reason, once closed
        self._turn_started: float | None = None
        self._prefilled = self._reused = self._written = self._steps = 0
        thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        close_at_exit(self, thread)
        thread.start()

    def submit(self, generation: Generation) -> None:
        """Queue a generation for a slot.

        Raises:
            Unavailable: the scheduler is closed.
        """
        sequence = SequenceState(generation)
        with self._wake:
            if self._closed:
                raise Unavailable(self._closed)
            if not (self._table.free and self._parking.admits(sequence)):
                generation.outbox.put(Queued())
            self._alive[sequence] = None
            self._waiting.push(sequence, generation.client, generation.priority)
            self._wake.notify()

    def close(self, reason: Unavailable | None = None) -> None:
        """End every generation with `reason`, and the thread after its current turn; does not wait for a turn that hangs."""
        with self._wake:
            self._closed = self._closed or str(reason or SHUT_DOWN)
            ended, self._alive, self._waiting = list(self._alive), {}, FairQueue()
            for sequence in ended:
                self._parking.leave(sequence)
            self._wake.notify()
        for sequence in ended:
            sequence.generation.outbox.put(Unavailable(self._closed))

    def seconds_in_turn(self) -> float:
        """Return how long the current turn has been running, in seconds; 0 if the decoder is idle."""
        started = self._turn_started
        return time.monotonic() - started if started is not None else 0.0

    def stats(self) -> SchedulerStats:
        """Return the current counters and gauges."""
        with self._wake:
            return SchedulerStats(
                len(self._table),
                len(self._running),
                len(self._waiting) - len(self._parking),
                len(self._parking),
                self._parking.bytes,
                self._prefilled,
                self._reused,
                self._written,
                self._steps,
                self._drafting.stats() if self._drafting else DraftingStats(),
            )

    def _run(self) -> None:
        lower_thread_priority()
        self._measure_rows()
        while self._wait_for_work():
            try:
                self._release_stopped()
                self._admit()
                self._take_turn()
            except Exception as error:  # the running sequences cannot continue, waiting ones can
                where = "".join(format_tb(error.__traceback__))
                _log.error("a turn of the decoder failed with %s:\n%s", type(error).__name__, where)
                for sequence in list(self._running):
                    self._end(sequence, fresh(error))

    def _measure_rows(self) -> None:
        """Let drafting know what rows cost, before there are sequences; without that it drafts nothing."""
        if self._drafting is None:
            return
        self._turn_started = time.monotonic()
        try:
            self._drafting.measure([self._table[slot] for slot in range(len(self._table))], lambda: bool(self._closed))
        except Exception as error:
            _log.warning("nothing is drafted: measuring what rows cost failed with %s", type(error).__name__)

    def _wait_for_work(self) -> bool:
        """Wait until there is something to do; returns False once the scheduler is closed."""
        with self._wake:
            self._turn_started = None
            while not (self._closed or self._alive):
                self._wake.wait()
            self._turn_started = time.monotonic()
            return not self._closed

    @contextmanager
    def _alone(self, sequence: SequenceState) -> Iterator[None]:
        """End only this sequence if the block raises an exception."""
        try:
            yield
        except Exception as error:
            if isinstance(error, UnusableNumbers):
                _log.error("a generation ended: its logits are no numbers")
            self._end(sequence, error)

    def _release_stopped(self) -> None:
        """End the sequences whose callers no longer want them; what background has computed stays as a prefix."""
        with self._wake:
            alive = list(self._alive)
        for sequence in alive:
            with self._alone(sequence):
                if sequence.generation.stopped():
                    if sequence.background and sequence.slot >= 0:
                        self._keep(sequence, sequence.filled, self._table[sequence.slot])
                    self._end(sequence, Left())

    def _admit(self) -> None:
        """Give slots to waiting sequences, as long as one is free or can be taken from a running sequence."""
        while True:
            with self._wake:
                following = self._waiting.first(self._parking.admits)
                full = not self._table.free
            if following is None or (full and not self._make_room(following.priority)):
                return
            with self._wake:
                sequence = self._waiting.pop(self._parking.admits)
                if sequence is not None:
                    self._parking.resume(sequence)
            if sequence is not None:
                with self._alone(sequence):
                    self._join(sequence)

    def _make_room(self, priority: Priority) -> bool:
        """Preempt one sequence for a waiting one of `priority`; returns whether a slot became free."""
        return any(map(self._preempt, policy.preemptible(self._running, priority, self._parking.has_room)))

    def _preempt(self, sequence: SequenceState) -> bool:
        """Move a sequence from its slot back to the queue: batch is parked, background's tokens are cached as a prefix.

        Returns False, and leaves the sequence in its slot, if there is no memory to park it.
        """
        if sequence.background:
            self._keep(sequence, sequence.filled, self._table[sequence.slot])
            sequence.filled = 0
        else:
            try:
                sequence.parked = self._table[sequence.slot].park(sequence.cached)
            except MemoryError:
                _log.warning("no memory to park a batch generation: it keeps its slot")
                sequence.stays = True
                return False
        self._leave_slot(sequence)
        with self._wake:
            if sequence in self._alive:
                if sequence.parked is not None:
                    self._parking.park(sequence)
                self._waiting.push(sequence, sequence.generation.client, sequence.priority, again=True)
        return True

    def _join(self, sequence: SequenceState) -> None:
        """Give a sequence a slot, and copy into it the parked keys and values or the longest cached prefix of its prompt."""
        generation, parked, reused = sequence.generation, sequence.parked, 0
        known: JoinedKept | None = None
        if parked is None:
            known = self._prefixes.longest(generation.blocks[: generation.target // BLOCK])
            if known is not None:
                limit = generation.target if generation.sampling is None else generation.target - 1
                reused = sequence.filled = min(known.tokens, limit) // BLOCK * BLOCK
                known = known.first(reused)
        with self._wake:
            sequence.slot = self._table.take()
            self._running.append(sequence)
            self._parking.enter(sequence)
        if parked is not None:
            self._table[sequence.slot].write(parked)
            sequence.parked = None
            return
        if known is not None:
            known.write(self._table[sequence.slot])
        sequence.joined = time.perf_counter()
        with self._wake:
            self._reused += reused
        generation.outbox.put(Joined(reused))

    def _take_turn(self) -> None:
        """Run rows of prompts, and a token and a draft of every sequence that writes, in one call where the backend can."""
        for sequence in [sequence for sequence in self._running if sequence.prefilled and not sequence.decoding]:
            with self._alone(sequence):  # all of its prompt was cached
                self._prefilled_all(sequence, None)
        written = sum(sequence.decoding for sequence in self._running)
        rows = policy.rows_beside(written, self._turn_time, self._most_seconds)
        if self._backend.packs_rows:
            ends = dict(policy.chunks(self._running, self._steps, rows))
            if not self._run_parts(self._writing(), ends):
                wait_for_any([sequence.generation.form for sequence in self._running])
            return
        ran = self._run_parts([], dict(policy.chunk_in_blocks(self._running, self._steps, rows)))
        for sequence in self._writing():
            if sequence.scoring:  # its pieces are as long as those of no other sequence
                ran = self._run_parts([sequence], {})
        writing = [sequence for sequence in self._writing() if not sequence.scoring]
        self._pack(writing)
        if not (self._run_parts(writing, {}) or ran):
            wait_for_any([sequence.generation.form for sequence in self._running])

    def _writing(self) -> list[SequenceState]:
        """Those that are in the next step: whose form's masks are late sits out."""
        return [sequence for sequence in self._running if sequence.decoding and not sequence.sits_out]

    def _run_parts(self, writing: Sequence[SequenceState], ends: Mapping[SequenceState, int]) -> bool:
        """Run a token and a draft of each of `writing`, and prompts up to their `ends`; returns whether there are any."""
        members = sorted([*writing, *ends], key=lambda sequence: sequence.slot)
        if not members:
            return False
        prompt_rows = sum(end - sequence.filled for sequence, end in ends.items())
        prompt_rows += sum(len(sequence.scoring.tokens) - 1 for sequence in writing if sequence.scoring)
        started = time.perf_counter()
        longer = self._draft(writing, prompt_rows)
        try:
            parts = [self._part(sequence, ends) for sequence in members]
            for sequence in writing:
                if sequence.generation.form and not sequence.scoring:
                    sequence.generation.form.expect(sequence.draft)
            logits = self._backend.turn(parts)
        except Exception as error:
            if len(members) == 1 and not members[0].draft:
                self._end(members[0], error)
                return True
            # One sequence or a draft may have caused it: run each alone and without one, so that only that one fails.
            for sequence in members:
                with self._alone(sequence):
                    if sequence.drafter:
                        sequence.drafter.cut(0)
                    part = self._part(sequence, ends)
                    self._advance(sequence, part, self._backend.turn([part])[0], started)
            return True
        if writing:
            self._steps += 1
            self._turn_time.learn(prompt_rows, (time.perf_counter() - started) / longer)
            forms = [sequence.generation.form if sequence in writing else None for sequence in members]
            wait_for_masks(forms, self._turn_time.step)
        for row, (sequence, part) in enumerate(zip(members, parts, strict=True)):
            with self._alone(sequence):
                self._advance(sequence, part, logits[row], started)
        return True

    def _draft(self, writing: Sequence[SequenceState], prompt_rows: int) -> float:
        """Draft for the next step, as `Drafting.draft` does; where that fails, the sequences go on without drafts."""
        if not (writing and self._drafting):
            return 1.0
        try:
            return self._drafting.draft(writing, prompt_rows, self._table.max_sequence)
        except Exception as error:
            _log.warning("a step is not drafted for: guessing failed with %s", type(error).__name__)
            for sequence in writing:
                sequence.drafter = None
            return 1.0

    def _part(self, sequence: SequenceState, ends: Mapping[SequenceState, int]) -> SlotRows:
        """The tokens that a sequence has in the next turn."""
        filled, slot = sequence.filled, self._table[sequence.slot]
        if sequence.decoding:
            tokens, read = np.array(sequence.next_tokens), sequence.cached - filled
            positions = np.tile(np.arange(len(tokens)) + sequence.position + read, (3, 1))
            angles = self._model.rotary.angles(positions)
            return SlotRows(slot, sequence.cached, self._backend.embed(tokens), angles, logits=len(tokens))
        positions = sequence.generation.prompt.positions[:, filled : ends[sequence]]
        embeddings = sequence.generation.embed(filled, ends[sequence])
        return SlotRows(slot, filled, embeddings, self._model.rotary.angles(positions))

    def _advance(self, sequence: SequenceState, part: SlotRows, logits: Sequence[Logits], started: float) -> None:
        if sequence.scoring:
            self._score(sequence, sequence.scoring, logits)
            return
        if sequence.decoding:
            self._verify(sequence, logits, started)
            return
        with self._wake:
            self._waiting.charge(sequence.generation.client, part.tokens)
            self._prefilled += part.tokens
        best(logits[-1])  # raises where they are not finite, before anything of the chunk is cached
        sequence.filled += part.tokens
        if sequence.prefilled:
            self._prefilled_all(sequence, logits[-1])

    def _verify(self, sequence: SequenceState, logits: Sequence[Logits], started: float) -> None:
        """Choose a token from each row's logits, as long as the draft has just that token.

        The rows behind are forgotten: `filled` counts those whose tokens were written, and the next step overwrites the others.
        Where the form's masks are late, these are the rows of the next step.
        """
        draft, before, form = sequence.draft, len(sequence.written), sequence.generation.form
        if form:
            with self._wake:
                work = policy.mask_work(form.uncharged(), self._turn_time.step)
                self._waiting.charge(sequence.generation.client, work)
        if draft and not (self._backend.packs_rows or all(map(usable, logits))):
            self._forget_draft(sequence)
            return
        for row, ours in enumerate(logits):
            if form and not form.ready:
                break
            sequence.filled += 1
            sequence.position += 1
            ended = self._choose(sequence, ours, started)
            if ended or draft[row : row + 1] != [sequence.token]:
                break
        if self._drafting and len(sequence.written) > before:
            self._drafting.wrote(sequence, sequence.written[before:])

    def _forget_draft(self, sequence: SequenceState) -> None:
        """Leave a step undone whose draft may have made NaN of it, and draft nothing more for this sequence.

        Attention weighs what lies behind a row by zero, and zero times NaN is NaN, unless it takes packed rows.
        """
        sequence.drafter, cache = None, self._table[sequence.slot]
        cache.clear(min(sequence.filled + self._backend.step_tokens(1), cache.max_sequence), sequence.filled)

    def _prefilled_all(self, sequence: SequenceState, logits: Logits | None) -> None:
        generation = sequence.generation
        generation.outbox.put(Prefilled(sequence.joined, time.perf_counter() - sequence.joined))
        if generation.sampling is None:
            self._keep(sequence, sequence.filled, self._table[sequence.slot])
            self._end(sequence, Left())
            return
        assert logits is not None, "at least one token of a prompt is always run"
        started = time.perf_counter()
        sequence.sampler = Sampler(generation.sampling, generation.prompt.token_ids, self._model.vocab_size)
        sequence.left = min(generation.sampling.max_new_tokens, self._table.max_sequence - sequence.filled)
        sequence.position = generation.prompt.next_position
        cache = self._table[sequence.slot]
        if generation.choices:
            piece = self._backend.step_tokens(1)
            sequence.scoring = ChoiceScoring(
                generation.choices, generation.form.stops if generation.form else (), logits, piece
            )
        else:
            self._begin_text(sequence, logits, started)  # it may end: the slot is free then, but still filled
        if generation.lasting:
            self._keep(sequence, generation.lasting, cache)

    def _begin_text(self, sequence: SequenceState, logits: Logits, started: float) -> None:
        """Write the first token."""
        sequence.drafter = self._drafting.begin(sequence.generation) if self._drafting else None
        self._choose(sequence, logits, started)
        if self._drafting:
            self._drafting.wrote(sequence, [sequence.token])

    def _score(self, sequence: SequenceState, scoring: ChoiceScoring, logits: Sequence[Logits]) -> None:
        """Take a piece of a choice into account that was read; after the last one the text begins."""
        with self._wake:
            self._waiting.charge(sequence.generation.client, len(logits))
        scoring.add(logits)
        if scoring.done:
            sequence.scoring = None
            sequence.generation.outbox.put(Scored(tuple(scoring.log_probabilities)))
            self._begin_text(sequence, scoring.logits, time.perf_counter())

    def _choose(self, sequence: SequenceState, logits: Logits, started: float) -> bool:
        """Write the next token; returns whether it is the last."""
        assert sequence.sampler is not None
        form = sequence.generation.form
        sequence.token = sequence.sampler.choose(logits, form.allowed() if form else None)
        if form:
            form.take(sequence.token)
        sequence.written.append(sequence.token)
        sequence.left -= 1
        with self._wake:
            self._waiting.charge(sequence.generation.client, 1)
            self._written += 1
        finish = FinishReason.LENGTH if sequence.left == 0 else None
        if sequence.token in self._model.stop_token_ids or (form and form.ended):
            finish = FinishReason.STOP
        best_few = sequence.generation.log_probabilities
        likely = None if best_few is None else likelihood(logits, sequence.token, best_few)
        sequence.generation.outbox.put(Written(sequence.token, started, time.perf_counter() - started, finish, likely))
        if finish:
            cache = self._table[sequence.slot]
            self._leave(sequence)
            self._keep_reply(sequence, cache)  # the slot is free then, but still filled
            if self._drafting:
                self._drafting.finished(sequence)
        return finish is not None

    def _pack(self, writing: list[SequenceState]) -> None:
        """Move the decoding sequences into the first slots, and sort `writing` by slot."""
        where = {sequence.slot: sequence for sequence in self._running}
        for source, target in policy.moves(sequence.slot for sequence in writing):
            mover, other = where[source], where.get(target)
            self._table.move(source, target, mover.cached, other.cached if other else 0)
            mover.slot = target
            if other:
                other.slot = source
        writing.sort(key=lambda sequence: sequence.slot)

    def _keep(self, sequence: SequenceState, tokens: int, cache: SlotCache) -> None:
        """Cache the keys and values of the first `tokens` tokens, in whole blocks, for prompts with the same prefix."""
        self._put(sequence, sequence.generation.blocks[: tokens // BLOCK], cache)

    def _keep_reply(self, sequence: SequenceState, cache: SlotCache) -> None:
        """Cache a prompt and what was written after it, for the next turn; the last token has no keys and values yet."""
        generation = sequence.generation
        if generation.continued is not None:
            names = generation.continued(sequence.written[:-1])
            about = generation.lasting // BLOCK
            self._put(sequence, names, cache, names[about - 1] if 0 < about <= len(names) else b"")

    def _put(self, sequence: SequenceState, names: Sequence[bytes], cache: SlotCache, about: bytes = b"") -> None:
        tokens = len(names) * BLOCK
        try:
            size = tokens * cache.token_bytes
            self._prefixes.put(sequence.generation.scope, names, size, partial(cache.read, tokens), about)
        except MemoryError:
            _log.warning("no memory to keep a prompt's prefix")

    def _leave_slot(self, sequence: SequenceState) -> None:
        with self._wake:
            if sequence.slot >= 0:
                self._running.remove(sequence)
                self._table.give_back(sequence.slot)
                sequence.slot = -1

    def _leave(self, sequence: SequenceState) -> bool:
        """Remove a sequence that ended, wherever it is; returns whether it was still alive."""
        self._leave_slot(sequence)
        sequence.parked = None
        if sequence.generation.form:
            sequence.generation.form.leave()
        with self._wake:
            self._parking.leave(sequence)
            self._waiting.remove(sequence, sequence.generation.client, sequence.priority)
            known = sequence in self._alive
            self._alive.pop(sequence, None)
            return known

    def _end(self, sequence: SequenceState, how: Progress) -> None:
        if isinstance(how, Exception) and sequence.slot >= 0:
            # Its keys and values may be NaN. The slot's next sequence would weigh them by zero in attention, and get NaN.
            try:
                self._table[sequence.slot].clear(min(sequence.filled + policy.CHUNK, self._table.max_sequence))
            except Exception as error:  # a device that fails at everything
                _log.error("a slot could not be cleared: %s", type(error).__name__)
        if self._leave(sequence):
            sequence.generation.outbox.put(how)
