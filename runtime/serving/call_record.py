"""Record one call from its arrival to its status: id, client, outcome, and observers."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Sequence
from traceback import format_tb

import grpc

from echovlm_edge.runtime.contracts.errors import Busy, UserError
from echovlm_edge.runtime.contracts.request import Finished
from echovlm_edge.runtime.contracts.statuses import CallStatus, status_of
from echovlm_edge.runtime.observability.ended_call import Observer
from echovlm_edge.runtime.serving.access.clients import Client

NO_MEMORY_RETRY_SECONDS = 5.0

_log = logging.getLogger(__name__)


class CallRecord:
    """The state of a running call, whichever transport carries it.

    Attributes:
        id: in the log and in the call's initial metadata; made by the server, so that no client can write into the log.
        started: when the call arrived, by time.perf_counter.
        gone: set by the transport once nobody waits for the answer: cancelled, disconnected, or past the deadline.
        outcome: `ok`, `cancelled`, or a status code's name in lower case.
        finished: a generation's result, if there is one.
        traceparent: the client's trace that the call belongs to (W3C Trace Context), or empty.
        door: the protocol that the call came by, `grpc` or `http`.
    """

    def __init__(
        self, method: str, client: Client, observers: Sequence[Observer], traceparent: str = "", door: str = "grpc"
    ) -> None:
        """Begin the record of a call of `method` by `client`."""
        self.method, self.client, self.traceparent, self.door = method, client, traceparent, door
        self.id = secrets.token_hex(8)
        self.started = time.perf_counter()
        self.gone = threading.Event()
        self.outcome = "ok"
        self.finished: Finished | None = None
        self.seconds = 0.0
        self._observers = observers

    @property
    def client_name(self) -> str:
        """The client's name in the clients file."""
        return self.client.name

    def fail(self, error: Exception) -> CallStatus:
        """Record how the call fails; returns the status that its client gets."""
        status = self._status(error)
        self.outcome = "cancelled" if self.gone.is_set() else status.code.name.lower()
        return status

    def end(self) -> None:
        """Record the end of the call and notify the observers; to be called once."""
        self.seconds = time.perf_counter() - self.started
        if self.gone.is_set():
            self.outcome = "cancelled"
        for observe in self._observers:
            try:
                observe(self)
            except Exception as error:
                _log.error("an observer of calls failed with %s", type(error).__name__)

    def _status(self, error: Exception) -> CallStatus:
        if isinstance(error, UserError):
            return status_of(error)
        # The traceback without the error's own text, which could quote the request.
        _log.error(
            "a %s failed with %s:\n%s",
            self.method,
            type(error).__name__,
            "".join(format_tb(error.__traceback__)),
            extra={"request_id": self.id},
        )
        if isinstance(error, MemoryError):
            sentence = "The server has no memory for this request now: try again later."
            return status_of(Busy(sentence, NO_MEMORY_RETRY_SECONDS))
        return CallStatus(grpc.StatusCode.INTERNAL, "The server failed on this request; its log says where.")
