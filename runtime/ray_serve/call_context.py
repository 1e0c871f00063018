"""Adapt a call that Ray Serve passes to a replica to the `Arrival` interface of the report service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from echovlm_edge.runtime.contracts.statuses import CallStatus

Metadata = Sequence[tuple[str, str]]


class Refused(Exception):
    """The call's status is set; Ray Serve passes it on."""


class CallContext:
    """An `Arrival`, over Ray Serve's `RayServegRPCContext`, and how it is answered.

    Metadata that would go first goes last: Ray Serve's proxy sends none before the call's end. With a status other than OK it sends
    none at all.
    """

    def __init__(self, context: Any) -> None:
        """`context` is Ray Serve's."""
        self._context = context

    def invocation_metadata(self) -> Any:
        """The metadata that the client sent with the call."""
        return self._context.invocation_metadata()

    def auth_context(self) -> Any:
        """The properties of the connection to the proxy."""
        return self._context.auth_context()

    def peer(self) -> str:
        """The address that the call came from."""
        return str(self._context.peer())

    def encrypted(self) -> bool:
        """Whether the call came over TLS."""
        return b"ssl" in self.auth_context().get("transport_security_type", ())

    def send_last(self, metadata: Metadata) -> None:
        """Send metadata at the call's end."""
        self._context.set_trailing_metadata(list(metadata))

    def refuse(self, status: CallStatus) -> NoReturn:
        """End the call with that status.

        Raises:
            Refused: always.
        """
        self._context.set_code(status.code)
        self._context.set_details(status.sentence)
        raise Refused(status.sentence)
