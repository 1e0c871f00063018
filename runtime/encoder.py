"""Images to embeddings, beside the decoder: one thread takes them in turn, and one seen before costs nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from echovlm_edge.runtime.backends import Backend, Floats
from echovlm_edge.runtime.errors import Unavailable
from echovlm_edge.runtime.fair_queue import FairQueue
from echovlm_edge.runtime.generate import Stopped
from echovlm_edge.runtime.give_way import give_way
from echovlm_edge.runtime.preprocess import PreprocessSettings, patchify
from echovlm_edge.runtime.request import Frame, Priority, Stage
from echovlm_edge.runtime.reuse import ImageStore
from echovlm_edge.runtime.rotary import vision_angles


@dataclass(frozen=True)
class Embedded:
    """One image's embeddings float32 [m, hidden_size], and when each of its stages ended, by time.perf_counter.

    The first stage began at `started`. There are none where the embeddings were kept from before.
    """

    identity: int
    embeddings: Floats
    started: float = 0.0
    ends: dict[Stage, float] = field(default_factory=dict)


@dataclass(eq=False)
class _Job:
    """One image, for all that asked for it while it waited."""

    identity: int
    frame: Frame
    wanted_by: list[Callable[[], bool]]  # each says when it no longer wants it
    done: Future[Embedded] = field(default_factory=Future)

    def unwanted(self) -> bool:
        return all(stopped() for stopped in self.wanted_by)


class Encoder:
    """Owns the vision encoder and the projector, and the memory of what they have seen."""

    def __init__(self, backend: Backend, settings: PreprocessSettings, vision_head_dim: int, store: ImageStore) -> None:
        """Start its thread."""
        self._backend, self._settings, self._head_dim, self._store = backend, settings, vision_head_dim, store
        self._waiting: FairQueue[_Job] = FairQueue()
        self._jobs: dict[int, _Job] = {}
        self._wake = threading.Condition()
        self._closed: Exception | None = None
        self._job_started: float | None = None
        threading.Thread(target=self._run, name="encoder", daemon=True).start()

    def embed(
        self, frame: Frame, client: str, priority: Priority, stopped: Callable[[], bool]
    ) -> Embedded | Future[Embedded]:
        """An image's embeddings, at once where they are kept from before.

        The future raises `Stopped` where nobody wanted them any more when its turn came, and InvalidInput where the frame's
        shape cannot be used.

        Raises:
            Unavailable: the encoder is closed.
        """
        identity = frame.identity
        kept = self._store.get(identity)
        if kept is not None:
            return Embedded(identity, kept)
        with self._wake:
            if self._closed:
                raise self._closed
            job = self._jobs.get(identity)
            if job is None:
                job = self._jobs[identity] = _Job(identity, frame, [])
            job.wanted_by.append(stopped)
            self._waiting.push(job, client, priority)  # once for each that asks, so that it comes at the best priority
            self._wake.notify()
            return job.done

    def close(self, reason: Exception | None = None) -> None:
        """Fail what waits and what runs, and end the thread after its image; does not wait for one that hangs."""
        with self._wake:
            self._closed = self._closed or reason or Unavailable("The engine was shut down: ask again.")
            jobs, self._jobs = list(self._jobs.values()), {}
            self._wake.notify()
        for job in jobs:
            _settle(job.done, self._closed)

    def seconds_in_turn(self) -> float:
        """How long the image in work has been; 0 where there is none."""
        started = self._job_started
        return time.monotonic() - started if started is not None else 0.0

    def _run(self) -> None:
        give_way()
        while True:
            with self._wake:
                self._job_started = None
                while not (self._closed or self._waiting):
                    self._wake.wait()
                if self._closed:
                    return
                job = self._waiting.pop()
                if job.done.done():
                    continue
                if job.unwanted():
                    self._jobs.pop(job.identity, None)
                    job.done.set_exception(Stopped())
                    continue
                self._job_started = time.monotonic()
            try:
                outcome: Embedded | Exception = self._encode(job)
            except Exception as error:
                outcome = error
            with self._wake:
                self._jobs.pop(job.identity, None)
            if isinstance(outcome, Embedded):
                self._store.put(job.identity, outcome.embeddings)
            _settle(job.done, outcome)

    def _encode(self, job: _Job) -> Embedded:
        started = time.perf_counter()
        patches = patchify(job.frame.pixels, self._settings)
        ends = {Stage.PREPROCESS: time.perf_counter()}
        angles = vision_angles(patches.grid, self._settings.merge_size, self._head_dim)
        features = self._backend.encode(patches.values, angles)
        ends[Stage.VISION] = time.perf_counter()
        embeddings = self._backend.project(features)
        ends[Stage.PROJECTOR] = time.perf_counter()
        return Embedded(job.identity, embeddings, started, ends)


def _settle(done: Future[Embedded], outcome: Embedded | Exception) -> None:
    if done.done():  # closed meanwhile
        return
    if isinstance(outcome, Embedded):
        done.set_result(outcome)
    else:
        done.set_exception(outcome)
