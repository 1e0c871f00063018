"""Errors to gRPC's status codes and to google.rpc's details, and details back to reasons: the one place that knows which is which."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from echovlm_edge.runtime.contracts.errors import (
    Busy,
    ImageTokensOutOfRange,
    InvalidInput,
    NotFound,
    NotOffered,
    NotPossibleHere,
    StudyReplaced,
    Unauthenticated,
    Unavailable,
    UnusableForm,
    UnusableNumbers,
    UserError,
)

REQUEST_ID = "x-request-id"  # in a call's initial metadata: what the server's log names it by
RETRY_AFTER = "grpc-retry-pushback-ms"  # gRPC's own clients heed it where retries are configured
CODES = {
    InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    ImageTokensOutOfRange: grpc.StatusCode.INVALID_ARGUMENT,
    UnusableForm: grpc.StatusCode.INVALID_ARGUMENT,
    NotPossibleHere: grpc.StatusCode.FAILED_PRECONDITION,
    NotFound: grpc.StatusCode.NOT_FOUND,
    StudyReplaced: grpc.StatusCode.NOT_FOUND,
    NotOffered: grpc.StatusCode.UNIMPLEMENTED,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    Busy: grpc.StatusCode.RESOURCE_EXHAUSTED,
    UnusableNumbers: grpc.StatusCode.INTERNAL,
}
DETAILS = "grpc-status-details-bin"  # a serialized google.rpc.Status, as gRPC's richer error model has it
DOMAIN = "echovlm.edge"
LONGEST_MESSAGE = 1000  # of the copy in the details: all trailing metadata together must stay below gRPC's 8 kB
# ErrorInfo.reason: part of the service's contract, so that a client never has to read a sentence.
REASONS: dict[type[UserError], str] = {
    InvalidInput: "INVALID_INPUT",
    ImageTokensOutOfRange: "IMAGE_TOKENS_OUT_OF_RANGE",
    UnusableForm: "UNUSABLE_FORM",
    NotPossibleHere: "NOT_POSSIBLE_HERE",
    NotFound: "NOT_FOUND",
    StudyReplaced: "STUDY_REPLACED",
    NotOffered: "NOT_OFFERED",
    Unauthenticated: "UNAUTHENTICATED",
    Unavailable: "UNAVAILABLE",
    Busy: "BUSY",
    UnusableNumbers: "UNUSABLE_NUMBERS",
}


@dataclass(frozen=True)
class CallStatus:
    """How a failed call is answered: the code, a sentence, and trailing metadata."""

    code: grpc.StatusCode
    sentence: str = field(repr=False)
    metadata: tuple[tuple[str, str | bytes], ...] = field(default=(), repr=False)  # holds the sentence once more


def status_of(error: UserError) -> CallStatus:
    """The status that a client gets for an error that it or its operator can fix, with ErrorInfo, and RetryInfo for a delay."""
    kind = next(kind for kind in type(error).__mro__ if kind in CODES)
    code, retry_seconds = CODES[kind], error.retry_seconds if isinstance(error, Busy) else None
    status = Status(code=code.value[0], message=str(error)[:LONGEST_MESSAGE])
    status.details.add().Pack(ErrorInfo(reason=REASONS[kind], domain=DOMAIN))
    metadata: list[tuple[str, str | bytes]] = []
    if retry_seconds is not None:
        milliseconds = round(retry_seconds * 1000)
        delay = Duration()
        delay.FromMilliseconds(milliseconds)
        status.details.add().Pack(RetryInfo(retry_delay=delay))
        metadata.append((RETRY_AFTER, str(milliseconds)))
    return CallStatus(code, str(error), (*metadata, (DETAILS, status.SerializeToString())))


def reason_of(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The reason that a call's trailing metadata states; empty where it states none of this service's."""
    packed = dict(metadata).get(DETAILS, b"")
    try:
        status = Status.FromString(packed if isinstance(packed, bytes) else b"")
        for detail in status.details:
            info = ErrorInfo()
            if detail.Unpack(info) and info.domain == DOMAIN:
                return str(info.reason)
    except DecodeError:  # another program's
        pass
    return ""


def retry_seconds_of(metadata: Iterable[tuple[str, str | bytes]]) -> float | None:
    """The delay that a call's trailing metadata states: RETRY_AFTER, which older servers send too; None for never, or not said."""
    asked = str(dict(metadata).get(RETRY_AFTER, ""))
    return int(asked) / 1000 if asked.isdecimal() and asked.isascii() else None
