"""Convert a failed call to an error of this package: by the reason that the server states, else by the status code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import grpc

from echovlm_edge.runtime.contracts.errors import (
    DeadlineExceeded,
    ImageTokensOutOfRange,
    InvalidInput,
    NotFound,
    NotOffered,
    NotPossibleHere,
    ServerBusy,
    ServerUnavailable,
    StudyReplaced,
    Unauthenticated,
    UnusableForm,
    UnusableNumbers,
    UserError,
)
from echovlm_edge.runtime.contracts.statuses import CODES, REASONS, reason_of, retry_seconds_of

OUT_OF_TIME = "The server did not finish within the time given: allow more with --timeout (timeout=)."

_REASON_ONLY = (
    UnusableNumbers,
    StudyReplaced,
    ImageTokensOutOfRange,
    UnusableForm,
)  # kinds that share their status code with another
_CODE_REASONS = {CODES[kind]: reason for kind, reason in REASONS.items() if kind not in _REASON_ONLY}
_PLAIN: dict[str, type[UserError]] = {
    "INVALID_INPUT": InvalidInput,
    "IMAGE_TOKENS_OUT_OF_RANGE": ImageTokensOutOfRange,
    "UNUSABLE_FORM": UnusableForm,
    "NOT_POSSIBLE_HERE": NotPossibleHere,
    "NOT_FOUND": NotFound,
    "STUDY_REPLACED": StudyReplaced,
    "NOT_OFFERED": NotOffered,
}


def error_of(error: Any, address: str, names: Sequence[str] = (), *, too_large: bool = False) -> UserError:
    """Return the error that a caller of the client gets for a failed call.

    Args:
        error: gRPC's, a `grpc.RpcError` with `code`, `details` and `trailing_metadata`.
        address: of the server.
        names: of the call's images, in order; they replace "image 2" in the server's sentence.
        too_large: the request has more bytes than the server takes; gRPC refuses it before the service sees it.
    """
    metadata = trailing(error)
    code, sentence = error.code(), _with_names(error.details() or "", names)
    stated = reason_of(metadata)
    reason = stated if stated in REASONS.values() else _CODE_REASONS.get(code, "")
    if reason in _PLAIN:
        return _PLAIN[reason](sentence)
    match reason:
        case "UNAUTHENTICATED":
            return Unauthenticated(
                f"{sentence} Give the token's file with --token-file (token_file= in Python).".lstrip()
            )
        case "UNUSABLE_NUMBERS":
            return UnusableNumbers()
        case "UNAVAILABLE" if stated:
            return ServerUnavailable(sentence)
        case "UNAVAILABLE":
            return ServerUnavailable(
                f"The server at {address} did not take the call ({sentence}): check that echovlm-serve runs there, and give the "
                "certificates it asks for."
            )
        case "BUSY" if too_large and not stated:
            return NotPossibleHere(
                f"The request is too large for the server ({sentence}): send fewer or smaller images, or start the "
                "server with a larger --max-message-mb."
            )
        case "BUSY":
            return ServerBusy(sentence, retry_seconds_of(metadata))
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(OUT_OF_TIME)
    return NotPossibleHere(f"The server answered {code.name}: {sentence}")


def no_answer(address: str) -> ServerUnavailable:
    """Return the error for a server that does not answer for an unknown cause."""
    return ServerUnavailable(
        f"No server answers at {address}: start one with echovlm-serve, and give the certificates it asks for."
    )


def is_stated(error: Any) -> bool:
    """Tell whether the report service itself refused the call, rather than gRPC or the network."""
    return bool(reason_of(trailing(error)))


def trailing(error: Any) -> list[tuple[str, str | bytes]]:
    """Return a failed call's trailing metadata."""
    return [(key, value) for key, value in error.trailing_metadata() or ()]


def _with_names(sentence: str, names: Sequence[str]) -> str:
    places = {f"image {number}": name for number, name in enumerate(names, 1)}
    return re.sub(r"\bimage \d+\b", lambda place: places.get(place[0], place[0]), sentence)
