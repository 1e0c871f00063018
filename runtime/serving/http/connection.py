"""A connection to the HTTP door: a bounded number of them, none that holds a request's head back, and whose certificate it has."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from echovlm_edge.runtime.serving.http.exchange import CERTIFICATE

_log = logging.getLogger(__name__)


class BoundedConnection(H11Protocol):
    """uvicorn's connection, which by itself waits for the head of a request for ever."""

    def __init__(self, most: int, head_seconds: float, *arguments: Any, **named: Any) -> None:
        """Allow `most` connections; a request's head must arrive within `head_seconds` of its first byte, or of the connection."""
        super().__init__(*arguments, **named)
        self._most, self._head_seconds = most, head_seconds
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, or close it where there are too many."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, CERTIFICATE: _names(transport.get_extra_info("peercert") or {})}
        if len(self.connections) > self._most:
            transport.close()
            return
        self._late = self.loop.call_later(self._head_seconds, transport.close)

    def data_received(self, data: bytes) -> None:
        """Handle what came, and watch the time of a head that has come in part."""
        super().data_received(data)
        begun = not self.transport.is_closing() and self._between_requests() and bool(self.conn.trailing_data[0])
        if not begun:
            self._stop_watch()
        elif self._late is None:
            self._late = self.loop.call_later(self._head_seconds, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that it is closed."""
        self._stop_watch()
        super().connection_lost(exc)

    def _between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _stop_watch(self) -> None:
        if self._late:
            self._late.cancel()
            self._late = None


def _names(certificate: Mapping[str, Any]) -> dict[str, list[bytes]]:
    """List the common names and DNS names of a client's certificate under gRPC's names for them."""
    common = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    others = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
    found = {"x509_common_name": common, "x509_subject_alternative_name": others}
    return {key: [name.encode() for name in names] for key, names in found.items()}
