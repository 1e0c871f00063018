"""What every door hands its calls to: the service, who may call, and the limits that all doors share."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from echovlm_edge.runtime.observability.ended_call import Observer
from echovlm_edge.runtime.serving.access.identification import Access
from echovlm_edge.runtime.serving.service import ReportService
from echovlm_edge.runtime.serving.transport.in_flight import CallsInFlight
from echovlm_edge.runtime.serving.transport.limits import TransportLimits
from echovlm_edge.runtime.serving.transport.receiving import Receiver
from echovlm_edge.runtime.serving.transport.receiving_files import FileReceiver


@dataclass(frozen=True)
class Reception:
    """The parts of a server that its doors share.

    Attributes:
        service: answers the calls.
        access: identifies the callers.
        threads: run the service's methods; at least as many as calls are admitted.
        observers: called with every call that ended.
        receiver: reads the messages.
        files: reads the files that are uploaded.
        in_flight: counts the calls.
        limits: of connections and calls.
    """

    service: ReportService
    access: Access
    threads: Executor
    observers: Sequence[Observer]
    receiver: Receiver
    files: FileReceiver
    in_flight: CallsInFlight
    limits: TransportLimits
