"""What is known of a call that has ended: what logs, metrics and traces observe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from echovlm_edge.runtime.contracts.request import Finished


class EndedCall(Protocol):
    """A call that has ended, whichever transport carried it.

    Attributes:
        id: in the log, and in the call's initial metadata.
        method: as report.proto has it.
        outcome: `ok`, `cancelled`, or a status code's name in lower case.
        seconds: from its arrival to its end.
        finished: a generation's result, where there is one.
        traceparent: the client's trace that the call belongs to (W3C Trace Context), or empty.
    """

    id: str
    method: str
    outcome: str
    seconds: float
    finished: Finished | None
    traceparent: str

    @property
    def client_name(self) -> str:
        """Who called, as the clients file names it."""
        ...


Observer: TypeAlias = Callable[[EndedCall], None]
