"""Remember the last calls that failed: when, which, and how; nothing of what they asked."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from echovlm_edge.runtime.observability.ended_call import EndedCall

MOST = 64
NO_ERRORS = ("ok", "cancelled")


@dataclass(frozen=True)
class CallError:
    """A call that failed.

    Attributes:
        time: when it ended, in seconds since 1970.
        request_id: of the call in the log.
        method: likewise.
        outcome: a status code's name in lower case.
        client: the name in the clients file.
        door: the protocol that the call came by.
    """

    time: float
    request_id: str
    method: str
    outcome: str
    client: str
    door: str


class LastErrors:
    """The last calls that failed, the newest first. Any thread may call."""

    def __init__(self, most: int = MOST, clock: Callable[[], float] = time.time) -> None:
        """Remember `most` of them."""
        self._errors: deque[CallError] = deque(maxlen=most)
        self._clock = clock
        self._lock = threading.Lock()

    def observe(self, call: EndedCall) -> None:
        """Remember a call that ended, if it failed."""
        if call.outcome in NO_ERRORS:
            return
        error = CallError(self._clock(), call.id, call.method, call.outcome, call.client_name, call.door)
        with self._lock:
            self._errors.appendleft(error)

    def listed(self) -> tuple[CallError, ...]:
        """Return them."""
        with self._lock:
            return tuple(self._errors)
