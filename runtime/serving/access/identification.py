"""Identify the caller of every call except health checks, before the call's message is read."""

from __future__ import annotations

import logging
from typing import Protocol

from echovlm_edge.runtime.contracts.errors import Unauthenticated
from echovlm_edge.runtime.serving.access.clients import ANYBODY, Arrival, Client

_log = logging.getLogger(__name__)


class Access(Protocol):
    """Decides who may call."""

    def identify(self, arrival: Arrival) -> Client:
        """Identify the caller.

        Raises:
            Unauthenticated: the caller is not a known client.
        """
        ...


def log_refusal(method: str, arrival: Arrival, error: Unauthenticated) -> None:
    """Log a call of an unknown caller: its address and the kind of credentials, never the credentials."""
    _log.warning(
        "refused an unknown client",
        extra={"method": method.rpartition("/")[2], "peer": arrival.peer(), "tried": error.tried},
    )


def identified(access: Access, method: str, arrival: Arrival) -> Client:
    """Identify the caller; a refusal is logged.

    Raises:
        Unauthenticated: the caller is not a known client.
    """
    try:
        return access.identify(arrival)
    except Unauthenticated as error:
        log_refusal(method, arrival, error)
        raise


def told_apart(client: Client, arrival: Arrival) -> str:
    """Name the client or connection whose limits a call counts against: its connection if callers are not identified."""
    return client.name if client is not ANYBODY else arrival.peer()


def traceparent(arrival: Arrival) -> str:
    """Return the client's trace that a call belongs to (W3C Trace Context `traceparent`), or an empty text."""
    return next((str(value) for key, value in arrival.invocation_metadata() or () if key == "traceparent"), "")
