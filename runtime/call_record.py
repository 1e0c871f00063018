"""One call from its arrival to its status: its id, how it ended, and who is told; errors become status codes here."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from traceback import format_tb
from types import TracebackType

import grpc

from echovlm_edge.runtime.clients import Client
from echovlm_edge.runtime.errors import (
    Busy,
    InvalidInput,
    NotFound,
    NotPossibleHere,
    Unauthenticated,
    Unavailable,
    UserError,
)
from echovlm_edge.runtime.request import Finished

REQUEST_ID = "x-request-id"
RETRY_AFTER = "grpc-retry-pushback-ms"  # gRPC's own clients heed it where they are told to retry

CODES = {
    InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    NotPossibleHere: grpc.StatusCode.FAILED_PRECONDITION,
    NotFound: grpc.StatusCode.NOT_FOUND,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    Busy: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
NO_MEMORY_RETRY_SECONDS = 5.0

_log = logging.getLogger(__name__)


class CallRecord:
    """A context manager around a call: what leaves it as an exception becomes the call's status.

    Attributes:
        id: in the log and in the call's initial metadata; made here, so that no client can put anything into the log.
        outcome: `ok`, `cancelled`, or a status code's name in lower case.
        finished: a generation's result, where there is one.
        traceparent: the client's trace that the call belongs to (W3C Trace Context), or empty.
    """

    def __init__(
        self, method: str, client: Client, context: grpc.ServicerContext, observers: Sequence[Observer]
    ) -> None:
        """A call of `method` by `client` begins."""
        self.method, self.client, self.id = method, client, secrets.token_hex(8)
        self.outcome = "ok"
        self.finished: Finished | None = None
        self.seconds = 0.0
        self.traceparent = next(
            (str(value) for key, value in context.invocation_metadata() if key == "traceparent"), ""
        )
        self._context, self._observers = context, observers
        self._started = time.perf_counter()
        context.send_initial_metadata(((REQUEST_ID, self.id),))

    def __enter__(self) -> CallRecord:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        code, sentence = None, ""
        if isinstance(error, GeneratorExit):  # gRPC lets go of a stream whose client is gone
            self.outcome = "cancelled"
        elif isinstance(error, Exception):
            code, sentence = self._status(error)
            self.outcome = code.name.lower() if self._context.is_active() else "cancelled"
        self.seconds = time.perf_counter() - self._started
        for observe in self._observers:
            observe(self)
        if code is not None:
            self._context.abort(code, sentence)

    def _status(self, error: Exception) -> tuple[grpc.StatusCode, str]:
        if isinstance(error, Busy):
            self._retry_after(error.retry_seconds)
        if isinstance(error, UserError):
            return CODES[type(error)], str(error)
        # Where it failed, without the error's own text, which could quote the request.
        _log.error(
            "a %s failed with %s:\n%s",
            self.method,
            type(error).__name__,
            "".join(format_tb(error.__traceback__)),
            extra={"request_id": self.id},
        )
        if isinstance(error, MemoryError):
            self._retry_after(NO_MEMORY_RETRY_SECONDS)
            return grpc.StatusCode.RESOURCE_EXHAUSTED, "The server has no memory for this request now: ask again later."
        return grpc.StatusCode.INTERNAL, "The server failed on this request; its log says where."

    def _retry_after(self, seconds: float) -> None:
        self._context.set_trailing_metadata(((RETRY_AFTER, str(round(seconds * 1000))),))


Observer = Callable[[CallRecord], None]
