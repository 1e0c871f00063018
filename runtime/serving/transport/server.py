"""A running server: the report service, health checks and reflection on one address, until it is stopped."""

from __future__ import annotations

import asyncio
import logging
import resource
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from echovlm_edge.runtime.contracts.addresses import DEFAULT_ADDRESS, host_and_port
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.observability.ended_call import Observer
from echovlm_edge.runtime.observability.last_errors import LastErrors
from echovlm_edge.runtime.observability.logs import log_call
from echovlm_edge.runtime.resources.atomic_file import write_whole
from echovlm_edge.runtime.serving.access import tls
from echovlm_edge.runtime.serving.access.admission import Admission
from echovlm_edge.runtime.serving.access.clients import Everybody
from echovlm_edge.runtime.serving.access.identification import Access
from echovlm_edge.runtime.serving.http.exchange.door_options import HttpOptions
from echovlm_edge.runtime.serving.messages import CallLimits
from echovlm_edge.runtime.serving.review.reviewed import Rule
from echovlm_edge.runtime.serving.review.rules import RULES
from echovlm_edge.runtime.serving.service import NAME, Engine, ReportService
from echovlm_edge.runtime.serving.studies import Studies, StudyLimits
from echovlm_edge.runtime.serving.supervision.served_engine import ServedEngine
from echovlm_edge.runtime.serving.transport.event_loop import run_on_loop
from echovlm_edge.runtime.serving.transport.grpc_calls import ReportCalls
from echovlm_edge.runtime.serving.transport.health import Health
from echovlm_edge.runtime.serving.transport.in_flight import CallsInFlight
from echovlm_edge.runtime.serving.transport.limits import TransportLimits
from echovlm_edge.runtime.serving.transport.listening import Listener, join
from echovlm_edge.runtime.serving.transport.receiving import Receiver
from echovlm_edge.runtime.serving.transport.receiving_files import FileReceiver
from echovlm_edge.runtime.serving.transport.reception import Reception
from echovlm_edge.runtime.serving.transport.service_reflection import Reflection
from echovlm_edge.runtime.serving.uploads import UploadLimits, Uploads

if TYPE_CHECKING:
    from echovlm_edge.runtime.serving.http.connections.door import HttpDoor

SPARE_THREADS = 8  # for calls that need no place while all places are taken
SWEEP_SECONDS = 30.0  # between two sweeps for expired studies and uploads
CERTIFICATE_SECONDS = 1.0  # between two polls of the certificates' files
RETRY_SECONDS = 30.0  # until new certificates with which no server could start are tried again
SPARE_DESCRIPTORS = 256  # that connections leave to the rest of the process
# gRPC's own limits: on silent peers, and on what one connection may hold.
CONNECTION_OPTIONS = (
    ("grpc.keepalive_time_ms", 60_000),  # finds peers that vanished without closing
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.max_concurrent_streams", 128),
    ("grpc.http2.bdp_probe", 0),  # otherwise gRPC buffers megabytes for each call that has not been read yet
    ("grpc.max_send_message_length", -1),
    # No compression: 64 kB of gzip can become 64 MB, and pictures are compressed already.
    ("grpc.compression_enabled_algorithms_bitset", 1),
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerOptions:
    """How to serve.

    Attributes:
        listen: HOST:PORT; port 0 takes a free one.
        port_file: the file to which the port is written once the server answers.
        grace_seconds: time for running calls when the server is stopped.
        slots: calls that run together, as many as the engine has slots.
        queue: calls that may wait for a slot.
        request_bytes: memory for the messages of all admitted calls.
        limits: of one call.
        studies: limits of all studies.
        uploads: limits of all uploaded files.
        tls: certificates; None serves in plain text.
        transport: limits of connections and calls, apart from admission.
        rules: make the notes about finished texts.
        http: the HTTP door; None has none.
    """

    listen: str = DEFAULT_ADDRESS
    port_file: Path | None = None
    grace_seconds: float = 10.0
    slots: int = 8
    queue: int = 32
    request_bytes: int = 512 << 20
    limits: CallLimits = field(default_factory=CallLimits)
    studies: StudyLimits = field(default_factory=StudyLimits)
    uploads: UploadLimits = field(default_factory=UploadLimits)
    tls: tls.TlsFiles | None = None
    transport: TransportLimits = field(default_factory=TransportLimits)
    rules: Sequence[Rule] = tuple(RULES.values())
    http: HttpOptions | None = None


class ReportServer:
    """A running server. Its health is SERVING from the start, as the engine is loaded by then.

    Raises:
        NotPossibleHere: the address is not HOST:PORT or cannot be used, or the certificates cannot be used.
    """

    def __init__(
        self,
        engine: Engine,
        options: ServerOptions,
        *,
        access: Access | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        """Listen and start serving.

        Args:
            engine: answers the calls.
            options: address and limits.
            access: identifies the callers; None accepts everybody.
            observers: called with every call that ended, after it was logged.
        """
        host, port = parse_address(options.listen)
        access = access or Everybody()
        places = options.slots + options.queue
        self._threads = ThreadPoolExecutor(places + SPARE_THREADS, thread_name_prefix="call")
        self.admission = Admission(places, options.slots, options.request_bytes)
        self.studies, self.uploads = Studies(options.studies, engine.prepare), Uploads(options.uploads)
        self._grace = options.grace_seconds
        self._stopped = threading.Event()
        service = ReportService(engine, self.studies, self.uploads, self.admission, options.limits, options.rules)
        certificates = tls.CertificateFiles(options.tls) if options.tls else None
        found = certificates.current if certificates else None
        self._errors = LastErrors()
        observed = (log_call, self._errors.observe, *observers)
        run_on_loop(self._start(service, access, observed, options, host, port, found))
        if isinstance(engine, ServedEngine):
            engine.on_serving, engine.on_replaced = self._say_serving, self.studies.prepare_all
        threading.Thread(target=self._sweep, name="sweep", daemon=True).start()
        if certificates:
            threading.Thread(target=self._follow, args=(certificates,), name="certificates", daemon=True).start()
        self.port = self._listener.port
        self.address = join(host, self.port)
        self.http_address = (
            join(parse_address(options.http.listen)[0], self._http.port) if options.http and self._http else ""
        )
        if options.port_file:
            write_whole(options.port_file, f"{self.port}\n".encode(), "The port file")

    @property
    def calls_in_flight(self) -> int:
        """Calls that have not ended: being received, running, or being delivered."""
        return len(self._in_flight)

    def stop(self) -> None:
        """Set NOT_SERVING, refuse new calls, and wait for running ones within the grace period."""
        self._stopped.set()
        self.admission.drain()
        self.studies.close()
        self.uploads.close()
        run_on_loop(self._stop())
        self._threads.shutdown(wait=False)

    async def _start(
        self,
        service: ReportService,
        access: Access,
        observers: Sequence[Observer],
        options: ServerOptions,
        host: str,
        port: int,
        certificates: tls.Certificates | None,
    ) -> None:
        bounds = options.transport
        self._receiver = Receiver(bounds.receiving)
        self._health = Health([NAME], bounds.health_seconds)
        files = FileReceiver(bounds.receiving_files, self._receiver, self._threads)
        self._in_flight = CallsInFlight(bounds.calls, bounds.calls_per_client)
        reception = Reception(service, access, self._threads, observers, self._receiver, files, self._in_flight, bounds)
        names = (NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        described = Reflection(names, access, self._receiver)
        transport = [
            *CONNECTION_OPTIONS,
            ("grpc.max_receive_message_length", options.limits.message_bytes),
            ("grpc.max_allowed_incoming_connections", _connections(bounds.connections)),
            ("grpc.server_handshake_timeout_ms", round(1000 * bounds.handshake_seconds)),
            ("grpc.max_connection_idle_ms", round(1000 * bounds.idle_seconds)),
        ]
        self._listener = Listener(host, port, (self._health, ReportCalls(reception), described), transport)
        self._http = self._http_door(options.http, reception) if options.http else None
        await self._listener.open(certificates.credentials() if certificates else None)
        if self._http:
            await self._http.open(certificates.context() if certificates else None)
        await self._health.set(True)

    def _http_door(self, options: HttpOptions, reception: Reception) -> HttpDoor:
        # After the door, whose import says what is missing.
        from echovlm_edge.runtime.serving.http.application import application
        from echovlm_edge.runtime.serving.http.connections.door import HttpDoor  # an optional dependency

        host, port = parse_address(options.listen)
        served = application(
            reception, replace(options, names=(host, *options.names)), lambda: self._health.serving, self._errors
        )
        return HttpDoor(host, port, served, reception.limits)

    async def _stop(self) -> None:
        # Calls that only wait for their client end now, so that the grace period is for calls that work.
        await self._health.close()
        self._receiver.close()
        doors = [door for door in (self._listener, self._http) if door]
        await asyncio.gather(*(door.stop(self._grace, lambda: self.admission.inside > 0) for door in doors))

    async def _renew(self, certificates: tls.Certificates) -> None:
        await self._listener.renew(certificates.credentials())
        if self._http:
            await self._http.renew(certificates.context())

    def _say_serving(self, serving: bool) -> None:
        run_on_loop(self._health.set(serving))

    def _sweep(self) -> None:
        while not self._stopped.wait(SWEEP_SECONDS):
            self.studies.forget_old()
            self.uploads.forget_old()

    def _follow(self, certificates: tls.CertificateFiles) -> None:
        """Follow changes of the certificates' files until the server stops."""
        waiting: tls.Certificates | None = None
        while not self._stopped.wait(CERTIFICATE_SECONDS):
            waiting = certificates.renewed() or waiting
            if not waiting:
                continue
            try:
                run_on_loop(self._renew(waiting))
            except NotPossibleHere as error:
                _log.error("no server starts with the new certificates, the old ones stay for now: %s", error)
                self._stopped.wait(RETRY_SECONDS)
            else:
                waiting = None
                _log.info("read the certificates again")


def _connections(wanted: int) -> int:
    """Return how many connections to accept: `wanted`, or fewer if the process's limit of descriptors is low."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(wanted, max(descriptors - SPARE_DESCRIPTORS, descriptors // 2))


def parse_address(listen: str) -> tuple[str, int]:
    """Split HOST:PORT or [IPV6]:PORT into host and port.

    Raises:
        NotPossibleHere: it is neither.
    """
    if (parts := host_and_port(listen)) is None:
        raise NotPossibleHere(f"{listen} is not an address: give HOST:PORT, for example {DEFAULT_ADDRESS}.")
    return parts
