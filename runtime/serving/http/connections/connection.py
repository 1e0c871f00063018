"""A connection to the HTTP door: a bounded number of them, none that holds a request's head back, and whose certificate it has."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from echovlm_edge.runtime.serving.http.exchange.exchange import CERTIFICATE

# What is left of a body after its answer is read for a moment: a connection that is closed before is reset, and its client, which is
# still sending, may never see the answer.
DISCARD_SECONDS, MOST_DISCARDED = 1.0, 64 << 20


class BoundedConnection(H11Protocol):
    """uvicorn's connection, which by itself waits for the head of a request, and for the rest of a refused body, for ever."""

    def __init__(self, most: int, head_seconds: float, *arguments: Any, **named: Any) -> None:
        """Allow `most` connections; a request's head must arrive within `head_seconds` of its first byte, or of the connection."""
        super().__init__(*arguments, **named)
        self._most, self._head_seconds = most, head_seconds
        self._late: asyncio.TimerHandle | None = None
        self._discarded = 0

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
        if self._between_requests() and self.conn.their_state is h11.SEND_BODY:
            self._discarded += len(data)
            if self._discarded > MOST_DISCARDED:
                self.transport.close()
                return
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Handle what came meanwhile, and watch it likewise."""
        super().on_response_complete()
        self._watch()

    def _watch(self) -> None:
        """Give what is left of a request, or has come of the next one's head, a time to end; there is one timer at most."""
        left = self.conn.their_state is h11.SEND_BODY
        begun = bool(self.conn.trailing_data[0]) or self.cycle is None
        if self.transport.is_closing() or not self._between_requests() or not (left or begun):
            self._stop_watch()
        elif self._late is None:
            self._late = self.loop.call_later(DISCARD_SECONDS if left else self._head_seconds, self.transport.close)

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
