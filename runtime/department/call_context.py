"""A call as Ray Serve hands it to a replica, in the shape that the report service knows calls by."""

from __future__ import annotations

import threading
from typing import Any, NoReturn

import grpc


class Refused(Exception):
    """The call's status is set; Ray Serve passes it on."""


class CallContext:
    """What the report service asks of a `grpc.ServicerContext`, over Ray Serve's `RayServegRPCContext`.

    Metadata that would go first goes last: Ray Serve's proxy sends none before the call's end. With a status other than OK it sends
    none at all.
    """

    def __init__(self, context: Any) -> None:
        """`context` is Ray Serve's."""
        self._context = context
        self._trailing: list[tuple[str, str]] = []
        self._ended = threading.Event()

    def end(self) -> None:
        """The client is gone, or has all it asked for."""
        self._ended.set()

    def is_active(self) -> bool:
        """Whether somebody still waits."""
        return not self._ended.is_set()

    def invocation_metadata(self) -> Any:
        """What the client sent beside its message."""
        return self._context.invocation_metadata()

    def auth_context(self) -> Any:
        """Of the connection to the proxy."""
        return self._context.auth_context()

    def peer(self) -> str:
        """Where it came from."""
        return str(self._context.peer())

    def encrypted(self) -> bool:
        """Whether it came by TLS."""
        return b"ssl" in self.auth_context().get("transport_security_type", ())

    def send_initial_metadata(self, metadata: tuple[tuple[str, str], ...]) -> None:
        """Sent with the end."""
        self.set_trailing_metadata(metadata)

    def set_trailing_metadata(self, metadata: tuple[tuple[str, str], ...]) -> None:
        """Sent with the end."""
        self._trailing += metadata
        self._context.set_trailing_metadata(self._trailing)

    def abort(self, code: grpc.StatusCode, sentence: str) -> NoReturn:
        """End the call with that status.

        Raises:
            Refused: always.
        """
        self._context.set_code(code)
        self._context.set_details(sentence)
        raise Refused(sentence)
