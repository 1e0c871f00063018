"""Tell how long a peer has been silent, in the place of pynetdicom's timer.

That timer follows the machine's clock, so that setting the clock would end every association. And it counts while the node itself is
at work for the peer: where a disk takes longer than the limit to store an instance, the association would end with its answer. Nor is
a peer silent whose bytes a busy node has not read yet.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

from pynetdicom.association import Association
from pynetdicom.timer import Timer


class Silence(Timer):
    """A timer with a monotonic clock that stands still while somebody holds it. Threads may share it."""

    def __init__(
        self,
        timeout: float | None,
        clock: Callable[[], float] = time.monotonic,
        has_unread: Callable[[], bool] = lambda: False,
    ) -> None:
        """Expire after `timeout` seconds, unless the peer `has_unread` bytes then; None never expires."""
        super().__init__(timeout)
        self._clock, self._has_unread = clock, has_unread
        self._lock, self._holders = threading.Lock(), 0

    def start(self) -> None:
        """Start from zero."""
        self._start_time, self._end_time = self._clock(), None

    def stop(self) -> None:
        """Stand still."""
        self._end_time = self._clock()

    @property
    def remaining(self) -> float:
        """Seconds until it expires; all of them while it is held."""
        if self.timeout is None:
            return 1.0
        if self._start_time is None or self._holders:
            return self.timeout
        return self.timeout - ((self._clock() if self._end_time is None else self._end_time) - self._start_time)

    @property
    def expired(self) -> bool:
        """Whether the peer has been silent for too long."""
        return super().expired and not self._has_unread()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Stand still in the context, and start from zero at its end."""
        with self._lock:
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self.start()
                self._holders -= 1


def silence_of(association: Association) -> Silence:
    """Return the timer of an association that `measure_silence` was called for."""
    return cast(Silence, association.dul._idle_timer)


def measure_silence(association: Association) -> None:
    """Replace an association's timers, before it starts."""
    association.dul._idle_timer = Silence(association.network_timeout, has_unread=partial(_has_unread, association))
    association.dul.artim_timer = Silence(association.acse_timeout)


def _has_unread(association: Association) -> bool:
    connection = association.dul.socket.socket if association.dul.socket else None
    try:
        waiting = select.poll()
        waiting.register(connection or -1, select.POLLIN)
        return any(event & select.POLLIN for _, event in waiting.poll(0))
    except (OSError, ValueError):  # it was closed meanwhile
        return False
