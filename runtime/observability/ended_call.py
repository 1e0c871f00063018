"""The record of a call that has ended, from which logs, metrics and traces are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from echovlm_edge.runtime.contracts.request import Finished


class EndedCall(Protocol):
    """A call that has ended, whichever transport carried it.

    Attributes:
        id: in the log, and in the call's initial metadata.
        method: its name in report.proto; what HTTP alone has is ShowPictures and GetConsoleStudy.
        outcome: `ok`, `cancelled`, or a status code's name in lower case.
        seconds: from its arrival to its end.
        finished: a generation's result, where there is one.
        traceparent: the client's trace that the call belongs to (W3C Trace Context), or empty.
        door: the protocol that the call came by, `grpc` or `http`.
    """

    id: str
    method: str
    outcome: str
    seconds: float
    finished: Finished | None
    traceparent: str
    door: str

    @property
    def client_name(self) -> str:
        """The client's name in the clients file."""
        ...


Observer: TypeAlias = Callable[[EndedCall], None]
