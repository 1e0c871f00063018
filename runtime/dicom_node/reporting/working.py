"""Work on all studies: which is due for what, in threads, and when a call to the server is tried again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from echovlm_edge.runtime.contracts.errors import UserError
from echovlm_edge.runtime.dicom_node.delivery.delivering import Backoff
from echovlm_edge.runtime.dicom_node.receiving.activity import Activity
from echovlm_edge.runtime.dicom_node.reporting.open_studies import AtServer
from echovlm_edge.runtime.dicom_node.reporting.study_worker import StudyWorker
from echovlm_edge.runtime.dicom_node.reporting.turns import Places, next_turn
from echovlm_edge.runtime.dicom_node.spool.rows import Study
from echovlm_edge.runtime.dicom_node.spool.spool import Spool
from echovlm_edge.runtime.dicom_node.spool.states import StudyState
from echovlm_edge.runtime.observability import logs

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 20.0  # seconds between calls to a server that is not there
POLL_SECONDS = 0.25

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Quiet:
    """When a study that receives is taken to be complete.

    Attributes:
        seconds: without an instance or an open association.
        settle_seconds: after which its cines are added, so that they are read by then; later instances are still taken.
    """

    seconds: float = 60.0

    @property
    def settle_seconds(self) -> float:
        """A tenth of the quiet period."""
        return self.seconds / 10


class Working:
    """Runs until it is closed. One thread works on a study at a time."""

    def __init__(
        self,
        spool: Spool,
        activity: Activity,
        worker: StudyWorker,
        quiet: Quiet,
        is_finished: Callable[[Study], bool],
        at_once: int,
    ) -> None:
        """Work on the studies of a spool.

        Args:
            spool: the studies.
            activity: tells how long each has been quiet.
            worker: does the work.
            quiet: when a study is complete.
            is_finished: whether the cart has said that a study is complete, and all its instances are there.
            at_once: studies that are worked on together.
        """
        self._spool, self._activity, self._worker = spool, activity, worker
        self._quiet, self._is_finished = quiet, is_finished
        self._backoff = Backoff(FIRST_PAUSE, LONGEST_PAUSE)
        self._busy: set[int] = set()
        self._stopped = threading.Event()
        self._at_once = at_once
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="study")
        self.server_faults = 0
        self._thread = threading.Thread(target=self._run, name="working", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Begin nothing more; calls that run are left to end with the process, as their results would only be made again."""
        self._stopped.set()
        self._spool.database.wake()
        self._thread.join()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                owed = self._spool.studies.in_states(StudyState.COMPLETE)
                receiving = self._spool.studies.in_states(StudyState.RECEIVING)
                self._begin_turns(owed, receiving)
                self._activity.forget({study.uid for study in receiving})
            except Exception as error:  # a full disk, for example
                _log.error("the studies cannot be read: %s", type(error).__name__)
            self._stopped.wait(POLL_SECONDS / 5)
            self._spool.database.wait(POLL_SECONDS)

    def _begin_turns(self, owed: list[Study], receiving: list[Study]) -> None:
        due: dict[int, Callable[[Study], None]] = {}
        for study in (*owed, *receiving):
            work = None if study.id in self._busy else self._due(study)  # in time, even if the server does not answer
            if work and self._backoff.is_due(study.id):
                due[study.id] = work
        while not self._stopped.is_set():
            at_server = self._worker.open_studies
            places = Places(at_server.ids, frozenset(self._busy), at_server.places, self._at_once)
            turn = next_turn(owed, receiving, due, places)
            if turn is None:
                return
            self._busy.add(turn.study.id)
            ended = None if turn.ends is None else at_server.give_up(turn.ends)
            self._pool.submit(self._work, turn.study, due[turn.study.id], ended)

    def _due(self, study: Study) -> Callable[[Study], None] | None:
        """Return what is to be done about a study now, if anything."""
        if study.state is StudyState.COMPLETE:
            return self._worker.report
        quiet = self._activity.quiet_seconds(study.uid)
        if self._is_finished(study):
            self._spool.studies.complete(study, "the performed procedure step")
            return None
        if quiet >= self._quiet.seconds:
            self._spool.studies.complete(study, f"a quiet period of {self._quiet.seconds:g} s")
            return None
        if self._spool.studies.undecided(study, "still"):
            return self._worker.add_stills
        if quiet >= self._quiet.settle_seconds and self._spool.studies.undecided(study, "cine"):
            return self._worker.add_cines
        return None

    def _work(self, study: Study, work: Callable[[Study], None], ended: AtServer | None) -> None:
        try:
            self._worker.open_studies.end(ended)
            work(study)
            self._backoff.forget(study.id)
        except UserError as error:  # the server is not there now
            self._backoff.failed(study.id)
            self.server_faults += 1
            _log.warning("the server did not answer, and will be asked again: %s", error, extra={"study": study.id})
        except Exception as error:  # its text may quote a file
            self._backoff.failed(study.id)
            logs.log_uncaught(f"work on study {study.id}", type(error), error.__traceback__)
        finally:
            self._busy.discard(study.id)
            self._spool.database.wake()
