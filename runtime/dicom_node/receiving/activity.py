"""How long studies have been quiet: no association that sent one of their instances is open, and none has come since."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from typing import Protocol


class Alive(Protocol):
    """An association: a thread."""

    def is_alive(self) -> bool:
        """Tell whether it is still open."""
        ...


class Activity:
    """Kept in memory: after a restart every study has just become quiet. Threads may share it.

    The clock is monotonic, so that setting the machine's clock completes no study.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with no associations."""
        self._clock, self._lock = clock, threading.Lock()
        self._open: dict[str, set[Alive]] = {}
        self._last: dict[str, float] = {}

    def touch(self, study: str, association: Alive | None = None) -> None:
        """Note that an association sent an instance of a study, or that one came in another way."""
        with self._lock:
            self._last[study] = self._clock()
            if association:
                self._open.setdefault(study, set()).add(association)

    def quiet_seconds(self, study: str) -> float:
        """Return how long a study has been quiet; 0 while an association that sent one of its instances is open."""
        with self._lock:
            now = self._clock()
            senders = self._open.get(study, set())
            ended = {association for association in senders if not association.is_alive()}
            if ended:
                senders -= ended
                self._last[study] = now
            if senders:
                return 0.0
            self._open.pop(study, None)
            return now - self._last.setdefault(study, now)

    def forget(self, known: Collection[str]) -> None:
        """Forget all studies but those that still receive, or whose association is open."""
        with self._lock:
            for study in self._open.keys() - set(known):
                self._open[study] = {association for association in self._open[study] if association.is_alive()}
            self._open = {study: senders for study, senders in self._open.items() if senders or study in known}
            kept = {*known, *self._open}
            self._last = {study: at for study, at in self._last.items() if study in kept}
