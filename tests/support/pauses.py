"""Hold the decoder before given steps, so that what comes in between comes at the same place in every run."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from echovlm_edge.runtime.backends import SlotCache
from tests.support.waiting import wait_for
from tests.support.watched_engine import WatchedBackend


class Pauses:
    """The decoder waits before each of `steps`, counted from 0, until the block of `before` has ended."""

    def __init__(self, backend: WatchedBackend, *steps: int) -> None:
        self._backend = backend
        self._over = {step: threading.Event() for step in steps}
        backend.fails = self._wait

    @contextmanager
    def before(self, step: int) -> Iterator[None]:
        wait_for(lambda: len(self._backend.steps) == step)
        yield
        self._over[step].set()

    def _wait(self, slots: Sequence[SlotCache]) -> bool:
        over = self._over.get(len(self._backend.steps))
        if over is not None:
            over.wait(60)
        return False
