"""Refusals as HTTP answers in the form of OpenAI's errors: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc

from echovlm_edge.runtime.contracts.errors import InvalidInput, TooSlow
from echovlm_edge.runtime.contracts.statuses import CallStatus, reason_of, retry_seconds_of

# google.rpc.Code says which HTTP status belongs to which code.
STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
}
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Refused(InvalidInput):
    """A request that is wrong as HTTP or as OpenAI's API has it.

    Attributes:
        status: of the answer.
        code: machine-readable.
        param: the field of the request that is wrong, as `messages[0].content`; empty where it is none.
    """

    def __init__(self, sentence: str, code: str = "invalid_value", param: str = "", status: int = 400) -> None:
        super().__init__(sentence)
        self.status, self.code, self.param = status, code, param


@dataclass(frozen=True)
class Refusal:
    """An answer that refuses a request."""

    status: int
    sentence: str = field(repr=False)
    code: str
    param: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def body(self) -> bytes:
        """The answer's JSON."""
        kind = TYPES.get(self.status) or ("server_error" if self.status >= 500 else "invalid_request_error")
        error = {"message": self.sentence, "type": kind, "param": self.param or None, "code": self.code}
        return json.dumps({"error": error}, ensure_ascii=False).encode(errors="replace")


def refusal_of(status: CallStatus, error: Exception | None = None) -> Refusal:
    """Make the answer of a call that failed: its status, and the `error` itself where that says more about the request."""
    if isinstance(error, Refused):
        return Refusal(error.status, str(error), error.code, error.param)
    code = 408 if isinstance(error, TooSlow) else STATUSES.get(status.code, 500)
    reason = reason_of(status.metadata).lower() or status.code.name.lower()
    return Refusal(code, status.sentence, reason, headers=_headers(code, retry_seconds_of(status.metadata)))


def _headers(status: int, retry_seconds: float | None) -> dict[str, str]:
    if status == 401:
        return {"WWW-Authenticate": "Bearer"}
    if retry_seconds is None:
        return {}
    return {"Retry-After": str(math.ceil(retry_seconds)), "retry-after-ms": str(round(1000 * retry_seconds))}
