"""A real engine whose backend tests can observe, block and break; and calls in separate threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.backends import Floats, Logits, SlotCache, SlotRows
from echovlm_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.contracts.request import Finished, GenerationRequest, TextDelta
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.prompting.rotary import Angles


class WatchedBackend(OnnxRuntimeBackend):
    """Remembers how many sequences each step had and how many tokens each prefill; fails or waits if it is told to.

    Attributes:
        fails: whether a step over these slots runs out of memory.
        nan_after: whether the row of a sequence with so many tokens in the cache is NaN.
        holds_after: after so many steps of several sequences, the gate closes.
        gate: steps and prefills wait for it; `embeds` and `encodes` are those of embeddings and of images.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle, threads=2)
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

    def encode(self, patches: Floats, angles: Angles) -> Floats:
        self.images.append(len(patches))
        self.encodes.wait()
        return super().encode(patches, angles)

    def embed(self, token_ids: NDArray[np.int64]) -> Floats:
        self.embedded += len(token_ids)
        self.embeds.wait()
        return super().embed(token_ids)

    def turn(self, rows: Sequence[SlotRows]) -> list[Logits]:
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
        logits = [row.copy() for row in super().turn(rows)]
        for part, row in zip(rows, logits, strict=True):
            if len(part.embeddings) == 1 and self.nan_after(part.past):
                row[:] = np.nan
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
