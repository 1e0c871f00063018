"""A running server: the report service with health checking and reflection, on one address, until it is stopped."""

from __future__ import annotations

import logging
import resource
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from echovlm_edge.runtime.contracts.addresses import DEFAULT_ADDRESS
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.observability.ended_call import Observer
from echovlm_edge.runtime.observability.logs import log_call
from echovlm_edge.runtime.resources.atomic_file import write_whole
from echovlm_edge.runtime.serving.access import tls
from echovlm_edge.runtime.serving.access.admission import Admission
from echovlm_edge.runtime.serving.access.clients import Everybody
from echovlm_edge.runtime.serving.access.identification import Access
from echovlm_edge.runtime.serving.messages import CallLimits
from echovlm_edge.runtime.serving.service import NAME, Engine, ReportService
from echovlm_edge.runtime.serving.studies import Studies, StudyLimits
from echovlm_edge.runtime.serving.supervision.served_engine import ServedEngine
from echovlm_edge.runtime.serving.transport.event_loop import run_on_loop
from echovlm_edge.runtime.serving.transport.grpc_calls import ReportCalls, TransportLimits
from echovlm_edge.runtime.serving.transport.health import Health
from echovlm_edge.runtime.serving.transport.listening import Listener, join
from echovlm_edge.runtime.serving.transport.receiving import Receiver
from echovlm_edge.runtime.serving.transport.service_reflection import Reflection
from echovlm_edge.runtime.serving.uploads import UploadLimits, Uploads

SPARE_THREADS = 8  # for calls that need no place while all places are taken
SWEEP_SECONDS = 30.0  # between two sweeps for studies and uploads that are over
CERTIFICATE_SECONDS = 1.0  # between two readings of the certificates
RETRY_SECONDS = 30.0  # until new certificates are tried again that no server could start with
SPARE_DESCRIPTORS = 256  # that connections leave to the rest of the process
# gRPC's own bounds: on what is silent, and on what one connection may hold.
CONNECTION_OPTIONS = (
    ("grpc.keepalive_time_ms", 60_000),  # a peer that is gone without a word
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.max_concurrent_streams", 128),
    ("grpc.http2.bdp_probe", 0),  # else a window of megabytes is buffered for each call that nobody has read yet
    ("grpc.max_send_message_length", -1),
    (
        "grpc.compression_enabled_algorithms_bitset",
        1,
    ),  # none: 64 kB of gzip are 64 MB, and pictures are compressed already
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerOptions:
    """How to serve.

    Attributes:
        listen: HOST:PORT; port 0 takes a free one.
        port_file: where the port is written once the server answers.
        grace_seconds: for running calls when the server is stopped.
        slots: calls that run together: the engine's.
        queue: calls that may wait beside them.
        request_bytes: of the messages of all calls inside.
        limits: of one call.
        studies: of all studies.
        uploads: of all uploaded files.
        tls: certificates; None serves in plain text.
        transport: limits of connections and calls beside the places for work.
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


class ReportServer:
    """A running server. Health says SERVING from the start, as the engine is loaded by then.

    Raises:
        NotPossibleHere: the address is not HOST:PORT, or cannot be listened on; certificates that cannot be used.
    """

    def __init__(
        self,
        engine: Engine,
        options: ServerOptions,
        *,
        access: Access | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        """Listen and start serving; `access` None lets everybody in; `observers` are told of every call that ended, as the log is."""
        host, port = parse_address(options.listen)
        access = access or Everybody()
        places = options.slots + options.queue
        self._threads = ThreadPoolExecutor(places + SPARE_THREADS, thread_name_prefix="call")
        self.admission = Admission(places, options.slots, options.request_bytes)
        self.studies, self.uploads = Studies(options.studies, engine.prepare), Uploads(options.uploads)
        self._grace = options.grace_seconds
        self._stopped = threading.Event()
        service = ReportService(engine, self.studies, self.uploads, self.admission, options.limits)
        certificates = tls.CertificateFiles(options.tls) if options.tls else None
        credentials = certificates.current.credentials() if certificates else None
        run_on_loop(self._start(service, access, (log_call, *observers), options, host, port, credentials))
        if isinstance(engine, ServedEngine):
            engine.on_serving, engine.on_replaced = self._say_serving, self.studies.prepare_all
        threading.Thread(target=self._sweep, name="sweep", daemon=True).start()
        if certificates:
            threading.Thread(target=self._follow, args=(certificates,), name="certificates", daemon=True).start()
        self.port = self._listener.port
        self.address = join(host, self.port)
        if options.port_file:
            write_whole(options.port_file, f"{self.port}\n".encode(), "The port file")

    @property
    def calls_in_flight(self) -> int:
        """Calls that are not over yet: being received, at work, or being delivered."""
        return self._calls.in_flight

    def stop(self) -> None:
        """Say NOT_SERVING, refuse new calls, and let running ones end within the grace; without one it takes a second or two."""
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
        credentials: grpc.ServerCredentials | None,
    ) -> None:
        bounds = options.transport
        self._receiver = Receiver(bounds.receiving)
        self._health = Health([NAME], bounds.health_seconds)
        self._calls = ReportCalls(service, access, self._threads, observers, self._receiver, bounds)
        names = (NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        described = Reflection(names, access, self._receiver)
        transport = [
            *CONNECTION_OPTIONS,
            ("grpc.max_receive_message_length", options.limits.message_bytes),
            ("grpc.max_allowed_incoming_connections", _connections(bounds.connections)),
            ("grpc.server_handshake_timeout_ms", round(1000 * bounds.handshake_seconds)),
            ("grpc.max_connection_idle_ms", round(1000 * bounds.idle_seconds)),
        ]
        self._listener = Listener(host, port, (self._health, self._calls, described), transport)
        await self._listener.open(credentials)
        await self._health.set(True)

    async def _stop(self) -> None:
        # What only waits for its client ends now, so that the grace is for calls that work.
        await self._health.close()
        self._receiver.close()
        await self._listener.stop(self._grace, lambda: self.admission.inside > 0)

    def _say_serving(self, serving: bool) -> None:
        run_on_loop(self._health.set(serving))

    def _sweep(self) -> None:
        while not self._stopped.wait(SWEEP_SECONDS):
            self.studies.forget_old()
            self.uploads.forget_old()

    def _follow(self, certificates: tls.CertificateFiles) -> None:
        """Serve with what the certificates' files hold, until the end."""
        waiting: tls.Certificates | None = None
        while not self._stopped.wait(CERTIFICATE_SECONDS):
            waiting = certificates.renewed() or waiting
            if not waiting:
                continue
            try:
                run_on_loop(self._listener.renew(waiting.credentials()))
            except NotPossibleHere as error:
                _log.error("no server starts with the new certificates, the old ones stay for now: %s", error)
                self._stopped.wait(RETRY_SECONDS)
            else:
                waiting = None
                _log.info("read the certificates again")


def _connections(wanted: int) -> int:
    """As many connections as wanted, or as the process's limit of descriptors leaves room for."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(wanted, max(descriptors - SPARE_DESCRIPTORS, descriptors // 2))


def parse_address(listen: str) -> tuple[str, int]:
    """HOST:PORT or [IPV6]:PORT.

    Raises:
        NotPossibleHere: it is neither.
    """
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise NotPossibleHere(f"{listen} is no address: give HOST:PORT, for example {DEFAULT_ADDRESS}.")
    return host.strip("[]"), int(port)
