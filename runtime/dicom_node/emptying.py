"""Empty the spool: studies that were delivered, or of which no report can be written, after the time that they are kept for."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

from echovlm_edge.runtime.dicom_node.spool.spool import Spool
from echovlm_edge.runtime.dicom_node.spool.states import StudyState

SWEEP_SECONDS = 30.0
REMEMBERED_SECONDS = (
    90 * 24 * 3600.0
)  # a study's UIDs and versions, so that a late instance's report names its predecessor

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeptFor:
    """How long studies are kept, in seconds after they were delivered, or failed."""

    delivered: float
    failed: float


class Emptying:
    """Runs until it is closed."""

    def __init__(self, spool: Spool, kept: KeptFor) -> None:
        """Empty a spool."""
        self._spool, self._kept = spool, kept
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="emptying", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._stopped.set()
        self._thread.join()

    def make_room(self) -> None:
        """Empty at once all that is delivered: the spool is full."""
        with self._lock:
            for study in self._spool.studies.in_states(StudyState.DELIVERED):
                self._spool.studies.empty(study)

    def _run(self) -> None:
        while not self._stopped.wait(min(SWEEP_SECONDS, max(1.0, self._kept.delivered))):
            try:
                with self._lock:
                    self._sweep(time.time())
            except Exception as error:
                _log.error("the spool cannot be emptied: %s", type(error).__name__)

    def _sweep(self, now: float) -> None:
        for state, seconds in ((StudyState.DELIVERED, self._kept.delivered), (StudyState.FAILED, self._kept.failed)):
            for study in self._spool.studies.in_states(state):
                if study.changed + seconds <= now:
                    self._spool.studies.empty(study)
        self._spool.studies.forget(now - REMEMBERED_SECONDS)
