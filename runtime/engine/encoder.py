"""Encode images in one thread, concurrently with the decoder; embeddings are cached."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from traceback import format_tb

from echovlm_edge.runtime.backends import Backend, Floats
from echovlm_edge.runtime.bundle.manifest import ModelSpec
from echovlm_edge.runtime.contracts.errors import SHUT_DOWN, Stopped, Unavailable, UserError
from echovlm_edge.runtime.contracts.request import Frame, Priority, Stage
from echovlm_edge.runtime.engine.at_exit import close_at_exit
from echovlm_edge.runtime.engine.caching.reuse import ImageStore
from echovlm_edge.runtime.imaging.preprocess import PreprocessSettings, cut
from echovlm_edge.runtime.prompting.rotary import vision_angles
from echovlm_edge.runtime.prompting.windows import image_windows
from echovlm_edge.runtime.resources.fair_queue import FairQueue
from echovlm_edge.runtime.resources.thread_priority import lower_thread_priority

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Embedded:
    """One image's embeddings, float32 [m, hidden_size], and the time.perf_counter at which each of its stages ended.

    The first stage began at `started`. Cached embeddings have no stages.
    """

    identity: bytes = field(repr=False)
    embeddings: Floats = field(repr=False)
    started: float = 0.0
    ends: dict[Stage, float] = field(default_factory=dict)


@dataclass(eq=False)
class _Job:
    """One image to encode, for all requests of a scope that want it before it is encoded."""

    scope: str
    frame: Frame
    wanted_by: list[Callable[[], bool]]  # each returns True once its request no longer wants the image
    done: Future[Embedded] = field(default_factory=Future)

    @property
    def key(self) -> tuple[str, bytes]:
        return self.scope, self.frame.identity

    def unwanted(self) -> bool:
        return all(stopped() for stopped in self.wanted_by)


class Encoder:
    """Owns the vision encoder, the projector and the cache of their embeddings."""

    def __init__(self, backend: Backend, settings: PreprocessSettings, spec: ModelSpec, store: ImageStore) -> None:
        """Start the encoder's thread."""
        self._backend, self._settings, self._spec, self._store = backend, settings, spec, store
        self._waiting: FairQueue[tuple[_Job, str]] = FairQueue()  # each with the client for whom it was pushed
        self._jobs: dict[tuple[str, bytes], _Job] = {}
        self._wake = threading.Condition()
        self._closed: str | None = None  # the reason, once closed
        self._job_started: float | None = None
        thread = threading.Thread(target=self._run, name="encoder", daemon=True)
        close_at_exit(self, thread)
        thread.start()

    def embed(
        self, frame: Frame, client: str, scope: str, priority: Priority, stopped: Callable[[], bool]
    ) -> Embedded | Future[Embedded]:
        """Return an image's embeddings if they are cached for this scope, or a future of them.

        The future raises `Stopped` if no request wants the image any more when its turn comes, and InvalidInput if the frame's
        shape cannot be used.

        Raises:
            Unavailable: the encoder is closed.
        """
        kept = self._store.get(scope, frame.identity)
        if kept is not None:
            return Embedded(frame.identity, kept)
        asked = _Job(scope, frame, [])
        with self._wake:
            if self._closed:
                raise Unavailable(self._closed)
            job = self._jobs.setdefault(asked.key, asked)
            job.wanted_by.append(stopped)
            # Pushed once per request, so that the job runs at the best priority of those that asked.
            self._waiting.push((job, client), client, priority)
            self._wake.notify()
            return job.done

    def close(self, reason: Unavailable | None = None) -> None:
        """Fail all jobs, waiting and running, and end the thread after its current image; does not wait for one that hangs."""
        with self._wake:
            self._closed = self._closed or str(reason or SHUT_DOWN)
            jobs, self._jobs = list(self._jobs.values()), {}
            self._waiting = FairQueue()
            self._wake.notify()
        for job in jobs:
            _settle(job.done, Unavailable(self._closed))

    def seconds_in_turn(self) -> float:
        """Return how long the current image has been running, in seconds; 0 if there is none."""
        started = self._job_started
        return time.monotonic() - started if started is not None else 0.0

    def _run(self) -> None:
        lower_thread_priority()
        while (work := self._next_work()) is not None:
            self._do(*work)
            del work  # so that an idle thread holds no image and no callers

    def _next_work(self) -> tuple[_Job, str] | None:
        """Wait for the next job; returns it and the client whose turn it counts as, or None once closed."""
        with self._wake:
            self._job_started = None
            while not (self._closed or self._waiting):
                self._wake.wait()
            self._job_started = time.monotonic()
            return None if self._closed else self._waiting.pop()

    def _do(self, job: _Job, client: str) -> None:
        if job.done.done():  # an earlier turn did it
            return
        try:
            outcome: Embedded | Exception = Stopped() if self._unwanted(job) else self._encode(job, client)
        except Exception as error:
            if not isinstance(error, UserError | Stopped):
                where = "".join(format_tb(error.__traceback__))
                _log.error("an image could not be encoded, %s:\n%s", type(error).__name__, where)
            # The job will hold the error. Its traceback would hold the job and the image, until the next collection.
            outcome = error.with_traceback(None)
        if isinstance(outcome, Embedded):
            self._store.put(job.scope, outcome.identity, outcome.embeddings)
        with self._wake:
            if self._jobs.get(job.key) is job:
                del self._jobs[job.key]
        _settle(job.done, outcome)

    def _unwanted(self, job: _Job) -> bool:
        """Check whether nobody wants the job any more, and then remove it: a later request starts another job."""
        with self._wake:
            if unwanted := job.unwanted():
                self._jobs.pop(job.key, None)
            return unwanted

    def _encode(self, job: _Job, client: str) -> Embedded:
        started = time.perf_counter()
        patches = cut(job.frame.pixels, self._settings)
        ends = {Stage.PREPROCESS: time.perf_counter()}
        with self._wake:
            self._waiting.charge(client, len(patches.values))
        merge, spec = self._settings.merge_size, self._spec
        angles = vision_angles(patches.grid, merge, spec.vision_head_dim)
        features = self._backend.encode(patches.values, angles, image_windows(patches.grid, merge, spec.vision_window))
        ends[Stage.VISION] = time.perf_counter()
        embeddings = self._backend.project(features)
        ends[Stage.PROJECTOR] = time.perf_counter()
        return Embedded(job.frame.identity, embeddings, started, ends)


def _settle(done: Future[Embedded], outcome: Embedded | Exception) -> None:
    if done.done():  # the encoder was closed meanwhile
        return
    if isinstance(outcome, Embedded):
        done.set_result(outcome)
    else:
        done.set_exception(outcome)
