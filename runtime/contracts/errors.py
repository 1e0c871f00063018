"""The errors that a user can fix: one sentence that names the thing and the fix, never a traceback.

A server raises Busy and Unavailable; its client, whose user cannot see the server, raises ServerBusy and ServerUnavailable.
"""

from __future__ import annotations

from typing import TypeVar

SHUT_DOWN = "The engine was shut down: try again."
SHUTTING_DOWN = "The server is shutting down: try again in a while."
Error = TypeVar("Error", bound=Exception)


class UserError(Exception):
    """Something the user can fix. `str(error)` is the one sentence shown; a command that it ends exits with `exit_code`."""

    exit_code = 2


class InvalidInput(UserError):
    """The request itself is wrong (unreadable image, prompt too long). gRPC INVALID_ARGUMENT."""


class TooSlow(InvalidInput):
    """The request did not arrive in time. gRPC INVALID_ARGUMENT."""


class ImageTokensOutOfRange(InvalidInput):
    """The bound asked for on a frame's tokens is above the bundle's or server's, or below the model's least. gRPC INVALID_ARGUMENT."""


class UnusableForm(InvalidInput):
    """The form asked for is one that no text has, is not supported, or is too complex. gRPC INVALID_ARGUMENT."""


class NotPossibleHere(UserError):
    """The request is fine, this bundle or machine is not (missing file, full disk). gRPC FAILED_PRECONDITION."""


class Busy(UserError):
    """There is no room now; `retry_seconds` says when to try again. gRPC RESOURCE_EXHAUSTED."""

    def __init__(self, sentence: str, retry_seconds: float) -> None:
        super().__init__(sentence)
        self.retry_seconds = retry_seconds


class Unavailable(UserError):
    """The engine is being replaced or shut down: the same request can succeed later. gRPC UNAVAILABLE."""


class NotFound(UserError):
    """What the request names is not there, or not this client's. gRPC NOT_FOUND."""


class StudyReplaced(NotFound):
    """The study was unused, and was ended because its client needed room for a newer one. gRPC NOT_FOUND."""


class NotOffered(UserError):
    """This server does not do what the call asks for, whatever it holds. gRPC UNIMPLEMENTED."""


class Unauthenticated(UserError):
    """Nobody known calls; `tried` is how they said who they are: token, certificate or none. gRPC UNAUTHENTICATED."""

    def __init__(self, sentence: str, tried: str = "") -> None:
        super().__init__(sentence)
        self.tried = tried


class ServerBusy(UserError):
    """The server has no room now. `retry_after` says in how many seconds to try again; None where the server does not say."""

    exit_code = 3

    def __init__(self, sentence: str, retry_after: float | None = None) -> None:
        super().__init__(sentence)
        self.retry_after = retry_after


class ServerUnavailable(UserError):
    """The server cannot be reached, or is shutting down; the sentence says which, and what to change."""

    exit_code = 4


class DeadlineExceeded(UserError):
    """The server did not finish within the call's `timeout`."""

    exit_code = 5


class UnusableNumbers(UserError):
    """The model's logits are NaN or infinite for this request, and for no other. gRPC INTERNAL."""

    def __init__(self) -> None:
        super().__init__(
            "The model produced no usable numbers for this request: change its images or its sampling options."
        )


class Stopped(Exception):
    """The caller stopped the call before its first token; nobody waits for an answer."""


def fresh(error: Error) -> Error:
    """The same error as an exception of its own, for each caller that it is raised in.

    An instance that several callers raise collects the traceback, and so the requests, of all of them.
    """
    copied = type(error).__new__(type(error), *error.args)
    copied.__dict__.update(error.__dict__)
    return copied.with_traceback(error.__traceback__)
