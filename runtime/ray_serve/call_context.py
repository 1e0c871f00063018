"""Adapt a call from Ray Serve to the `Arrival` interface of the report service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from echovlm_edge.runtime.contracts.statuses import CallStatus

Metadata = Sequence[tuple[str, str]]


class Refused(Exception):
    """Ends a call whose status has been set; Ray Serve sends that status to the client."""


class CallContext:
    """An `Arrival` over Ray Serve's `RayServegRPCContext`, with methods to answer the call.

    Initial metadata becomes trailing metadata, because Ray Serve's proxy sends none before the end of a call. If the call fails, the
    proxy sends no metadata at all.
    """

    def __init__(self, context: Any) -> None:
        """`context` is Ray Serve's."""
        self._context = context

    def invocation_metadata(self) -> Any:
        """Return the metadata that the client sent with the call."""
        return self._context.invocation_metadata()

    def auth_context(self) -> Any:
        """Return the properties of the connection to the proxy."""
        return self._context.auth_context()

    def peer(self) -> str:
        """Return the address that the call came from."""
        return str(self._context.peer())

    def encrypted(self) -> bool:
        """Tell whether the call came over TLS."""
        return b"ssl" in self.auth_context().get("transport_security_type", ())

    def send_last(self, metadata: Metadata) -> None:
        """Send metadata at the end of the call."""
        self._context.set_trailing_metadata(list(metadata))

    def refuse(self, status: CallStatus) -> NoReturn:
        """End the call with that status.

        Raises:
            Refused: always.
        """
        self._context.set_code(status.code)
        self._context.set_details(status.sentence)
        raise Refused(status.sentence)
