"""Many generations on one decoder: they join and leave between tokens, and every running one gains a token a step."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from traceback import format_tb

import numpy as np

from echovlm_edge.runtime.backends import BatchBackend, Floats, Logits, SlotCache
from echovlm_edge.runtime.errors import Unavailable
from echovlm_edge.runtime.fair_queue import FairQueue
from echovlm_edge.runtime.generate import PREFILL_CHUNK, Model
from echovlm_edge.runtime.generation import Generation, Joined, Left, Prefilled, Progress, Queued, Written
from echovlm_edge.runtime.give_way import give_way
from echovlm_edge.runtime.request import FinishReason, Priority
from echovlm_edge.runtime.reuse import PrefixStore
from echovlm_edge.runtime.sampling import Sampler
from echovlm_edge.runtime.slots import SlotTable

# Rows of a product come out the same to the bit wherever a chunk of a multiple of this many tokens begins.
ALIGNMENT = 16
# Prefilled at once: alone, and while others write, whom it makes wait.
CHUNK, CHUNK_BESIDE_WRITERS = PREFILL_CHUNK, 64
# While reports are being read or written, a study's frames get a chunk after so many steps.
BACKGROUND_EVERY = 8

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Running:
    """A generation in a slot."""

    generation: Generation
    unread: Floats  # embeddings of the tokens yet to be prefilled
    slot: int
    filled: int  # tokens in the cache
    joined: float
    sampler: Sampler | None = None  # once it writes
    token: int = -1
    position: int = -1
    left: int = 0  # tokens it may still write

    @property
    def background(self) -> bool:
        return self.generation.priority is Priority.BACKGROUND


@dataclass(frozen=True)
class SchedulerStats:
    """Slots, waiting generations, and tokens since the start."""

    slots: int
    busy: int
    waiting: int
    prefilled_tokens: int
    reused_tokens: int
    written_tokens: int
    steps: int


class Scheduler:
    """Owns the decoder: one thread runs it, whatever others submit.

    In each turn it lets go who stopped, lets in who waits, prefills one chunk, and runs one step of all that write.
    """

    def __init__(self, model: Model, backend: BatchBackend, slots: Sequence[SlotCache], prefixes: PrefixStore) -> None:
        """`slots` are all of `new_slots`' caches."""
        self._model, self._backend, self._prefixes = model, backend, prefixes
        self._table = SlotTable(slots)
        self._running: list[_Running] = []
        self._waiting: FairQueue[Generation] = FairQueue()
        self._wake = threading.Condition()
        self._closed: Exception | None = None
        self._turn_started: float | None = None
        self._prefilled = self._reused = self._written = self._steps = 0
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    def submit(self, generation: Generation) -> None:
        """Let a generation wait for a slot.

        Raises:
            Unavailable: the scheduler is closed.
        """
        with self._wake:
            if self._closed:
                raise self._closed
            if not self._table.free:
                generation.outbox.put(Queued())
            self._waiting.push(generation, generation.client, generation.priority)
            self._wake.notify()

    def close(self, reason: Exception | None = None) -> None:
        """End every generation with `reason`, and the thread after its turn; does not wait for a turn that hangs."""
        with self._wake:
            self._closed = self._closed or reason or Unavailable("The engine was shut down: ask again.")
            ended = [*self._waiting.take(lambda _: True), *(running.generation for running in self._running)]
            self._wake.notify()
        for generation in ended:
            generation.outbox.put(self._closed)

    def seconds_in_turn(self) -> float:
        """How long the turn that runs now has been running; 0 where nothing is to be done."""
        started = self._turn_started
        return time.monotonic() - started if started is not None else 0.0

    def stats(self) -> SchedulerStats:
        """How it is doing."""
        with self._wake:
            return SchedulerStats(
                len(self._table),
                len(self._running),
                len(self._waiting),
                self._prefilled,
                self._reused,
                self._written,
                self._steps,
            )

    def _run(self) -> None:
        give_way()
        while True:
            with self._wake:
                self._turn_started = None
                while not (self._closed or self._waiting or self._running):
                    self._wake.wait()
                if self._closed:
                    return
                self._turn_started = time.monotonic()
            try:
                self._let_go()
                self._let_in()
                self._prefill_chunk()
                self._write_tokens()
            except Exception as error:  # whatever it was, those that run cannot go on and the next ones can
                where = "".join(format_tb(error.__traceback__))
                _log.error("a turn of the decoder failed with %s:\n%s", type(error).__name__, where)
                for running in list(self._running):
                    self._end(running, error)

    def _let_go(self) -> None:
        with self._wake:
            gone = self._waiting.take(lambda generation: generation.stopped())
        for generation in gone:
            generation.outbox.put(Left())
        for running in [running for running in self._running if running.generation.stopped()]:
            if running.background:
                self._keep(running, running.filled)
            self._end(running, Left())

    def _let_in(self) -> None:
        while True:
            with self._wake:
                best = self._waiting.best_priority()
                if best is None:
                    return
                if not self._table.free:
                    lower = [r for r in self._running if r.background and best < Priority.BACKGROUND]
                    if not lower:
                        return
                    # What it has is kept, so that it goes on from there.
                    back = lower[-1]
                    self._keep(back, back.filled)
                    self._leave(back)
                    self._waiting.push(back.generation, back.generation.client, back.generation.priority)
                generation = self._waiting.pop()
            try:
                self._join(generation)
            except Exception as error:  # out of memory, most likely
                generation.outbox.put(error)

    def _join(self, generation: Generation) -> None:
        known = self._prefixes.longest(generation.identities[: generation.target])
        reused = 0
        if known is not None:
            limit = generation.target if generation.sampling is None else generation.target - 1
            reused = min(known.shape[2], limit) // ALIGNMENT * ALIGNMENT
        slot = self._table.take()
        try:
            unread = generation.embed(reused)
            if known is not None:
                self._table[slot].write(0, known[:, :, :reused])
        except Exception:
            self._table.give_back(slot)
            raise
        with self._wake:
            self._running.append(_Running(generation, unread, slot, reused, time.perf_counter()))
            self._reused += reused
        generation.outbox.put(Joined(reused))

    def _prefill_chunk(self) -> None:
        running = self._next_to_prefill()
        if running is None:
            return
        generation, prompt = running.generation, running.generation.prompt
        others = any(other.sampler or not other.background for other in self._running if other is not running)
        chunk = CHUNK_BESIDE_WRITERS if others else CHUNK
        logits: Logits | None = None
        try:
            if running.filled < generation.target:
                stop = min((running.filled // ALIGNMENT * ALIGNMENT) + chunk, generation.target)
                count = stop - running.filled
                angles = self._model.rotary.angles(prompt.positions[:, running.filled : stop])
                cache = self._table[running.slot]
                logits = self._backend.decode(
                    running.unread[:count], angles, running.filled, np.array([count - 1]), cache
                )[0]
                with self._wake:
                    self._waiting.charge(generation.client, count)
                    self._prefilled += count
                running.unread = running.unread[count:]
                running.filled = stop
            if running.filled == generation.target:
                self._prefilled_all(running, logits)
        except Exception as error:
            self._end(running, error)

    def _prefilled_all(self, running: _Running, logits: Logits | None) -> None:
        generation = running.generation
        generation.outbox.put(Prefilled(running.joined, time.perf_counter() - running.joined))
        if generation.sampling is None:
            self._keep(running, running.filled)
            self._end(running, Left())
            return
        assert logits is not None, "at least one token of a prompt is always run"
        started = time.perf_counter()
        running.unread = running.unread.copy()  # nothing is left, and what it was the end of is let go
        running.sampler = Sampler(generation.sampling, generation.prompt.token_ids, self._model.vocab_size)
        running.left = min(generation.sampling.max_new_tokens, self._table.max_sequence - running.filled)
        running.position = generation.prompt.next_position
        self._choose(running, logits, started)
        if generation.lasting:
            self._keep(running, generation.lasting)

    def _next_to_prefill(self) -> _Running | None:
        reading = [running for running in self._running if running.sampler is None]
        foreground = [running for running in reading if not running.background]
        if foreground:
            return min(foreground, key=lambda running: (running.generation.priority, running.joined))
        writing = len(self._running) > len(reading)
        if not reading or (writing and self._steps % BACKGROUND_EVERY):
            return None
        return reading[0]

    def _write_tokens(self) -> None:
        writing = [running for running in self._running if running.sampler]
        if not writing:
            return
        started = time.perf_counter()
        self._pack(writing)
        try:
            logits = self._step(writing)
        except Exception as error:
            if len(writing) == 1:
                self._end(writing[0], error)
                return
            # One of them may have been too much: each alone, and only who fails fails.
            for running in writing:
                self._write_alone(running, started)
            return
        self._steps += 1
        for row, running in enumerate(writing):
            self._advance(running, logits[row], started)

    def _write_alone(self, running: _Running, started: float) -> None:
        try:
            self._advance(running, self._step([running])[0], started)
        except Exception as error:
            self._end(running, error)

    def _step(self, writing: Sequence[_Running]) -> Logits:
        embeddings = self._backend.embed(np.array([running.token for running in writing]))
        positions = np.tile(np.array([running.position for running in writing]), (3, 1))
        past = np.array([running.filled for running in writing])
        slots = self._table.range(writing[0].slot, len(writing))
        return self._backend.step(embeddings, self._model.rotary.angles(positions), past, slots)

    def _advance(self, running: _Running, logits: Logits, started: float) -> None:
        running.filled += 1
        running.position += 1
        self._choose(running, logits, started)

    def _choose(self, running: _Running, logits: Logits, started: float) -> None:
        assert running.sampler is not None
        running.token = running.sampler.choose(logits)
        running.left -= 1
        with self._wake:
            self._waiting.charge(running.generation.client, 1)
            self._written += 1
        finish = FinishReason.LENGTH if running.left == 0 else None
        sampling = running.generation.sampling
        if running.token in self._model.stop_token_ids and not (sampling and sampling.ignore_stop):
            finish = FinishReason.STOP
        running.generation.outbox.put(Written(running.token, started, time.perf_counter() - started, finish))
        if finish:
            self._leave(running)

    def _pack(self, writing: list[_Running]) -> None:
        """Bring those that write into the first slots, in the order of `writing`."""
        where = {running.slot: running for running in self._running}
        writing.sort(key=lambda running: running.slot)
        taken = {running.slot for running in writing}
        wanted = [slot for slot in range(len(writing)) if slot not in taken]
        movers = [running for running in reversed(writing) if running.slot >= len(writing)]
        for slot, running in zip(wanted, movers, strict=True):
            other = where.get(slot)
            self._table.move(running.slot, slot, running.filled, other.filled if other else 0)
            if other:
                other.slot = running.slot
            running.slot = slot
        writing.sort(key=lambda running: running.slot)

    def _keep(self, running: _Running, tokens: int) -> None:
        """Keep the first tokens' keys and values for prompts that begin alike."""
        named = running.generation.identities[:tokens]
        if tokens < ALIGNMENT or self._prefixes.covers(named):
            return
        try:
            self._prefixes.put(named, self._table[running.slot].read(0, tokens))
        except MemoryError:
            _log.warning("no memory to keep a prompt's prefix")

    def _leave(self, running: _Running) -> None:
        with self._wake:
            if running in self._running:
                self._running.remove(running)
                self._table.give_back(running.slot)

    def _end(self, running: _Running, how: Progress) -> None:
        self._leave(running)
        running.generation.outbox.put(how)
