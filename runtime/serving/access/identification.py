"""Who may call: asked of every call but health checks, before anything of its message is read."""

from __future__ import annotations

import logging
from typing import Protocol

from echovlm_edge.runtime.contracts.errors import Unauthenticated
from echovlm_edge.runtime.serving.access.clients import Arrival, Client

_log = logging.getLogger(__name__)


class Access(Protocol):
    """Knows clients."""

    def identify(self, arrival: Arrival) -> Client:
        """Who calls.

        Raises:
            Unauthenticated: nobody that is known.
        """
        ...


def log_refusal(method: str, arrival: Arrival, error: Unauthenticated) -> None:
    """Log a call of somebody unknown: from where and how it was tried, never with what."""
    _log.warning(
        "refused an unknown client",
        extra={"method": method.rpartition("/")[2], "peer": arrival.peer(), "tried": error.tried},
    )


def traceparent(arrival: Arrival) -> str:
    """Give the client's trace that a call belongs to (W3C Trace Context), or an empty text."""
    return next((str(value) for key, value in arrival.invocation_metadata() or () if key == "traceparent"), "")
