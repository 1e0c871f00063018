"""A connection of STOW-RS: from where somebody may send, not more than may be open, and closed when nothing comes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

_log = logging.getLogger(__name__)


class BoundedConnection(H11Protocol):
    """uvicorn's connection, which by itself waits for the head of a request for ever."""

    def __init__(
        self, most: int, idle_seconds: float, may_connect: Callable[[str], bool], *arguments: Any, **named: Any
    ) -> None:
        """Allow `most` connections, from addresses that `may_connect`, with a request's head every `idle_seconds`."""
        super().__init__(*arguments, **named)
        self._most, self._idle, self._may_connect = most, idle_seconds, may_connect
        self._watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, or close it."""
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        if not self._may_connect(address):
            _log.warning("an unknown sender was rejected", extra={"peer": address, "tried": "address"})
            transport.close()
        elif len(self.connections) > self._most:
            _log.warning("more connections than allowed: one was closed", extra={"peer": address})
            transport.close()
        else:
            self._watch = self.loop.call_later(self._idle, self._look, None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that it is closed."""
        if self._watch:
            self._watch.cancel()
        super().connection_lost(exc)

    def _look(self, request_before: object) -> None:
        """Close the connection if no request is being answered, and none has come since the last look."""
        if self.cycle is request_before and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()
        else:
            self._watch = self.loop.call_later(self._idle, self._look, self.cycle)
