"""Deliver what is owed: each document to each destination, again and again, until it is acknowledged."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from echovlm_edge.runtime.dicom_node.audit import Audit
from echovlm_edge.runtime.dicom_node.delivery.destinations import Destination, NotDelivered
from echovlm_edge.runtime.dicom_node.spool.rows import Owed
from echovlm_edge.runtime.dicom_node.spool.spool import Spool

FIRST_PAUSE, LONGEST_PAUSE = (
    1.0,
    300.0,
)  # seconds between attempts; each is twice the one before, and up to half as long again
POLL_SECONDS = 1.0  # also for what another process changed

_log = logging.getLogger(__name__)


class Backoff:
    """When something that failed is tried again; a monotonic clock, and forgotten at a restart."""

    def __init__(self, first: float, longest: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with nothing that failed; pauses are in seconds."""
        self._first, self._longest, self._clock = first, longest, clock
        self._failed: dict[int, tuple[int, float]] = {}

    def is_due(self, key: int) -> bool:
        """Tell whether it may be tried now."""
        return self._failed.get(key, (0, 0.0))[1] <= self._clock()

    def failed(self, key: int) -> None:
        """Note that it failed."""
        times = self._failed.get(key, (0, 0.0))[0]
        pause = min(self._longest, self._first * 2**times) * random.uniform(1.0, 1.5)
        self._failed[key] = times + 1, self._clock() + pause

    def forget(self, key: int) -> None:
        """Note that it succeeded, or is not wanted any more."""
        self._failed.pop(key, None)


class Delivering:
    """Runs until it is closed, in threads of its own. One attempt runs for each destination at a time."""

    def __init__(
        self,
        spool: Spool,
        destinations: Sequence[Destination],
        audit: Audit,
        *,
        backoff: Backoff | None = None,
    ) -> None:
        """Deliver to some destinations; what is owed to one that is not among them waits until it is given again."""
        self._spool, self._audit = spool, audit
        self._destinations = {destination.name: destination for destination in destinations}
        self._backoff = backoff or Backoff(FIRST_PAUSE, LONGEST_PAUSE)
        self._busy: set[str] = set()
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(
            len(destinations) or 1, thread_name_prefix="deliver"
        )  # nobody waits for another
        self.counts = {"delivered": 0, "failed": 0}
        self._thread = threading.Thread(target=self._run, name="delivering", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Begin no more attempts, and wait for those that run."""
        self._stopped.set()
        self._spool.database.wake()
        self._thread.join()
        self._pool.shutdown()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                for owed in self._spool.deliveries.owed():
                    self._begin(owed)
            except Exception as error:  # a full disk, for example: what is owed stays owed
                _log.error("what is owed cannot be read: %s", type(error).__name__)
            self._spool.database.wait(POLL_SECONDS)

    def _begin(self, owed: Owed) -> None:
        if owed.destination not in self._destinations or owed.destination in self._busy:
            return
        if self._stopped.is_set() or not self._backoff.is_due(owed.id):
            return
        self._busy.add(owed.destination)
        self._pool.submit(self._attempt, owed)

    def _attempt(self, owed: Owed) -> None:
        destination = self._destinations[owed.destination]
        fields = {"study": owed.study, "version": owed.version, "destination": owed.destination}
        try:
            content = self._spool.deliveries.begin_attempt(owed.id)
            if content is None:  # superseded meanwhile
                self._backoff.forget(owed.id)
                return
            destination.send(replace(owed.document, content=content))
            self._spool.deliveries.acknowledge(owed.id)
            self._backoff.forget(owed.id)
            self.counts["delivered"] += 1
            _log.info("a document was delivered", extra=fields)
            self._audit.write("delivered", "", owed.destination, instance=owed.document.sop_instance)
        except NotDelivered as error:
            self._failed(owed, str(error), fields)
        except Exception as error:  # its text may quote the document
            self._failed(owed, f"{owed.destination}: {type(error).__name__}", fields)
        finally:
            self._busy.discard(owed.destination)
            self._spool.database.wake()

    def _failed(self, owed: Owed, reason: str, fields: dict[str, object]) -> None:
        self._backoff.failed(owed.id)
        self.counts["failed"] += 1
        _log.warning("a document was not delivered, and will be sent again: %s", reason, extra=fields)
        try:
            self._spool.deliveries.refuse(owed.id, reason)
        except Exception as error:
            _log.error("a failed delivery cannot be noted: %s", type(error).__name__)
