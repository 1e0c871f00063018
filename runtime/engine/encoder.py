"""Images to embeddings, beside the decoder: one thread takes them in turn, and one seen before costs nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from traceback import format_tb

from echovlm_edge.runtime.backends import Backend, Floats
from echovlm_edge.runtime.contracts.errors import SHUT_DOWN, Stopped, Unavailable, UserError
from echovlm_edge.runtime.contracts.request import Frame, Priority, Stage
from echovlm_edge.runtime.engine.reuse import ImageStore
from echovlm_edge.runtime.imaging.preprocess import PreprocessSettings, cut
from echovlm_edge.runtime.prompting.rotary import vision_angles
from echovlm_edge.runtime.resources.fair_queue import FairQueue
from echovlm_edge.runtime.resources.thread_priority import give_way

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Embedded:
    """One image's embeddings float32 [m, hidden_size], and when each of its stages ended, by time.perf_counter.

    The first stage began at `started`. There are none where the embeddings were kept from before.
    """

    identity: bytes = field(repr=False)
    embeddings: Floats = field(repr=False)
    started: float = 0.0
    ends: dict[Stage, float] = field(default_factory=dict)


@dataclass(eq=False)
class _Job:
    """One image, for all of a scope that asked for it while it waited."""

    scope: str
    frame: Frame
    wanted_by: list[Callable[[], bool]]  # each says when it no longer wants it
    done: Future[Embedded] = field(default_factory=Future)

    @property
    def key(self) -> tuple[str, bytes]:
        return self.scope, self.frame.identity

    def unwanted(self) -> bool:
        return all(stopped() for stopped in self.wanted_by)


class Encoder:
    """Owns the vision encoder and the projector, and the memory of what they have seen."""

    def __init__(self, backend: Backend, settings: PreprocessSettings, vision_head_dim: int, store: ImageStore) -> None:
        """Start its thread."""
        self._backend, self._settings, self._head_dim, self._store = backend, settings, vision_head_dim, store
        self._waiting: FairQueue[tuple[_Job, str]] = FairQueue()  # with the client whose turn it is
        self._jobs: dict[tuple[str, bytes], _Job] = {}
        self._wake = threading.Condition()
        self._closed: str | None = None  # why
        self._job_started: float | None = None
        threading.Thread(target=self._run, name="encoder", daemon=True).start()

    def embed(
        self, frame: Frame, client: str, scope: str, priority: Priority, stopped: Callable[[], bool]
    ) -> Embedded | Future[Embedded]:
        """An image's embeddings, at once where they are kept from before for this scope.

        The future raises `Stopped` where nobody wanted them any more when its turn came, and InvalidInput where the frame's
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
            self._waiting.push(
                (job, client), client, priority
            )  # once for each that asks: it comes at the best priority
            self._wake.notify()
            return job.done

    def close(self, reason: Unavailable | None = None) -> None:
        """Fail what waits and what runs, and end the thread after its image; does not wait for one that hangs."""
        with self._wake:
            self._closed = self._closed or str(reason or SHUT_DOWN)
            jobs, self._jobs = list(self._jobs.values()), {}
            self._waiting = FairQueue()
            self._wake.notify()
        for job in jobs:
            _settle(job.done, Unavailable(self._closed))

    def seconds_in_turn(self) -> float:
        """How long the image in work has been; 0 where there is none."""
        started = self._job_started
        return time.monotonic() - started if started is not None else 0.0

    def _run(self) -> None:
        give_way()
        while (work := self._next_work()) is not None:
            self._do(*work)
            del work  # the image and its callers are not kept while nothing is to be done

    def _next_work(self) -> tuple[_Job, str] | None:
        """The job whose turn it is and the client that it is counted for, or None once closed."""
        with self._wake:
            self._job_started = None
            while not (self._closed or self._waiting):
                self._wake.wait()
            self._job_started = time.monotonic()
            return None if self._closed else self._waiting.pop()

    def _do(self, job: _Job, client: str) -> None:
        if job.done.done():  # by an earlier turn
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
        """Whether nobody wants it any more; whoever asks from then on begins another job."""
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
        angles = vision_angles(patches.grid, self._settings.merge_size, self._head_dim)
        features = self._backend.encode(patches.values, angles)
        ends[Stage.VISION] = time.perf_counter()
        embeddings = self._backend.project(features)
        ends[Stage.PROJECTOR] = time.perf_counter()
        return Embedded(job.frame.identity, embeddings, started, ends)


def _settle(done: Future[Embedded], outcome: Embedded | Exception) -> None:
    if done.done():  # closed meanwhile
        return
    if isinstance(outcome, Embedded):
        done.set_result(outcome)
    else:
        done.set_exception(outcome)
