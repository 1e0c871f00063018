"""A real engine whose backend tests can observe, block and break; and calls in separate threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.backends import Floats, Logits, SlotCache, SlotMemory, SlotRows
from echovlm_edge.runtime.backends.opening import open_backend
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.contracts.request import Finished, GenerationRequest, TextDelta
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.prompting.rotary import Angles
from echovlm_edge.runtime.prompting.windows import Windows


class WatchedBackend:
    """Remembers how many sequences each step had and how many tokens each prefill; fails or waits if it is told to.

    Attributes:
        fails: whether a step over these slots runs out of memory.
        nan_after: whether the row of a sequence with so many tokens in the cache is NaN.
        holds_after: after so many steps of several sequences, the gate closes.
        gate: steps and prefills wait for it; `embeds` and `encodes` are those of embeddings and of images.
    """

    def __init__(self, bundle: Bundle, memory: SlotMemory | None = None) -> None:
        self.inner = open_backend(bundle, threads=2, memory=memory)
        self.steps: list[int] = []
        self.pasts: list[list[int]] = []  # each step's, by row
        self.chunks: list[int] = []
        self.images: list[int] = []  # of each step, by row
        self.embedded = 0
        self.holds_after: int | None = None
        self.fails: Callable[[Sequence[SlotCache]], bool] = lambda slots: False
        self.nan_after: Callable[[int], bool] = lambda past: False
        self.gate, self.embeds, self.encodes = threading.Event(), threading.Event(), threading.Event()
        for gate in (self.gate, self.embeds, self.encodes):
            gate.set()

    @property
    def encoded(self) -> int:
        return len(self.images)

    @property
    def packs_rows(self) -> bool:
        return self.inner.packs_rows

    def new_slots(self, memory: SlotMemory) -> Sequence[SlotCache]:
        return self.inner.new_slots(memory)

    def decode(
        self, embeddings: Floats, angles: Angles, past: int, logit_rows: NDArray[np.int64], cache: SlotCache
    ) -> Logits:
        return self.inner.decode(embeddings, angles, past, logit_rows, cache)

    def project(self, features: Floats) -> Floats:
        return self.inner.project(features)

    def encode(self, patches: Floats, angles: Angles, windows: Windows | None = None) -> Floats:
        self.images.append(len(patches))
        self.encodes.wait()
        return self.inner.encode(patches, angles, windows)

    def embed(self, token_ids: NDArray[np.int64]) -> Floats:
        self.embedded += len(token_ids)
        self.embeds.wait()
        return self.inner.embed(token_ids)

    def step_tokens(self, sequences: int) -> int:
        return self.inner.step_tokens(sequences)

    def turn(self, rows: Sequence[SlotRows]) -> list[list[Logits]]:
        self.gate.wait()
        tokens = [part for part in rows if len(part.embeddings) == 1]
        if tokens and self.fails([part.slot for part in tokens]):
            raise MemoryError
        self.chunks += [len(part.embeddings) for part in rows if len(part.embeddings) > 1]
        if tokens:
            self.steps.append(len(tokens))
            self.pasts.append([part.past for part in tokens])
            if len(tokens) > 1 and sum(count > 1 for count in self.steps) == self.holds_after:
                self.gate.clear()
        logits = [[*rows] for rows in self.inner.turn(rows)]
        for index, part in enumerate(rows):
            if len(part.embeddings) == 1 and self.nan_after(part.past):
                logits[index] = [np.full_like(logits[index][0].copy(), np.nan)]
        return logits


MakeEngine = Callable[..., tuple[ReportEngine, WatchedBackend]]


def finish(engine: ReportEngine, request: GenerationRequest) -> Finished:
    *_, last = engine.generate(request)
    assert isinstance(last, Finished)
    return last


class Call(threading.Thread):
    """One request in a separate thread; it ends when `stop` is set."""

    def __init__(self, engine: ReportEngine, request: GenerationRequest) -> None:
        super().__init__(daemon=True)
        self.stop = threading.Event()
        self.events: list[object] = []
        self.failure: Exception | None = None
        self._call = lambda: engine.generate(request, self.stop.is_set)
        self.start()

    def run(self) -> None:
        try:
            for event in self._call():
                self.events.append(event)
        except Exception as error:
            self.failure = error

    def written(self) -> int:
        return sum(isinstance(event, TextDelta) for event in self.events)

    def result(self) -> Finished:
        self.join(60)
        assert self.events and isinstance(self.events[-1], Finished), self.failure
        return self.events[-1]
