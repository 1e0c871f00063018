"""A running server: the report service with health checking and reflection, on one address, until it is stopped."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from echovlm.v1 import report_pb2, report_pb2_grpc
from echovlm_edge.runtime import tls
from echovlm_edge.runtime.access import Access, Guard
from echovlm_edge.runtime.admission import Admission
from echovlm_edge.runtime.call_record import Observer
from echovlm_edge.runtime.clients import Everybody
from echovlm_edge.runtime.engine import DecodeImage
from echovlm_edge.runtime.errors import NotPossibleHere
from echovlm_edge.runtime.image import decode_image
from echovlm_edge.runtime.logs import log_call
from echovlm_edge.runtime.messages import CallLimits
from echovlm_edge.runtime.service import Engine, ReportService
from echovlm_edge.runtime.serving import ServedEngine
from echovlm_edge.runtime.studies import Studies, StudyLimits
from echovlm_edge.runtime.whole_file import write_whole

SERVICE = report_pb2.DESCRIPTOR.services_by_name["ReportService"].full_name
DEFAULT_ADDRESS = "127.0.0.1:50051"
SPARE_WORKERS = 16  # threads for health checks and refusals while all places are taken
SWEEP_SECONDS = 30.0  # between two looks for studies that are over


@dataclass(frozen=True)
class ServerOptions:
    """How to serve.

    Attributes:
        listen: HOST:PORT; port 0 takes a free one.
        port_file: where the port is written once the server answers.
        grace_seconds: for running calls when the server is stopped.
        slots: calls that run together: the engine's.
        queue: calls that may wait beside them.
        limits: of one call.
        studies: of all studies.
        tls: certificates; None serves in plain text.
    """

    listen: str = DEFAULT_ADDRESS
    port_file: Path | None = None
    grace_seconds: float = 10.0
    slots: int = 8
    queue: int = 32
    limits: CallLimits = field(default_factory=CallLimits)
    studies: StudyLimits = field(default_factory=StudyLimits)
    tls: tls.TlsFiles | None = None


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
        decode: DecodeImage = decode_image,
        observers: Sequence[Observer] = (),
    ) -> None:
        """Listen and start serving; `access` None lets everybody in; `observers` are told of every call that ended, as the log is."""
        host, port = parse_address(options.listen)
        access = access or Everybody()
        sizes = [
            ("grpc.max_receive_message_length", options.limits.message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ]
        places = options.slots + options.queue
        self._pool = ThreadPoolExecutor(places + SPARE_WORKERS)
        self._server = grpc.server(self._pool, options=sizes, interceptors=[Guard(access)])
        self._health = health.HealthServicer()
        self.admission = Admission(places, options.slots)
        self.studies = Studies(options.studies, engine.prepare)
        service = ReportService(
            engine, self.studies, self.admission, access, options.limits, decode, (log_call, *observers)
        )
        report_pb2_grpc.add_ReportServiceServicer_to_server(service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self.port = self._listen(host, port, options)
        self._grace = options.grace_seconds
        self._stopped = threading.Event()
        self._server.start()
        self._say_serving(True)
        if isinstance(engine, ServedEngine):
            engine.on_serving, engine.on_replaced = self._say_serving, self.studies.prepare_all
        threading.Thread(target=self._sweep, name="studies", daemon=True).start()
        self.address = _join(host, self.port)
        if options.port_file:
            write_whole(options.port_file, f"{self.port}\n".encode(), "The port file")

    def stop(self) -> None:
        """Say NOT_SERVING, refuse new calls, and let running ones end within the grace."""
        self._stopped.set()
        self._health.enter_graceful_shutdown()
        self.admission.drain()
        self.studies.close()
        self._server.stop(self._grace).wait()
        self._pool.shutdown(wait=False)

    def _say_serving(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", SERVICE):
            self._health.set(service, status)

    def _sweep(self) -> None:
        while not self._stopped.wait(SWEEP_SECONDS):
            self.studies.forget_old()

    def _listen(self, host: str, port: int, options: ServerOptions) -> int:
        credentials = tls.server_credentials(options.tls) if options.tls else None
        try:
            with socket.create_server((host, port), family=_family(host)):
                pass  # gRPC's own failure does not say why
            address = _join(host, port)
            if credentials:
                return int(self._server.add_secure_port(address, credentials))
            return int(self._server.add_insecure_port(address))
        except (OSError, RuntimeError) as error:
            # create_server appends the address, which the sentence has already.
            reason = (getattr(error, "strerror", None) or "the address cannot be used").partition(" (while")[0]
            raise NotPossibleHere(
                f"Cannot listen on {options.listen} ({reason}): give another --listen HOST:PORT."
            ) from None


def parse_address(listen: str) -> tuple[str, int]:
    """HOST:PORT or [IPV6]:PORT.

    Raises:
        NotPossibleHere: it is neither.
    """
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise NotPossibleHere(f"{listen} is no address: give HOST:PORT, for example {DEFAULT_ADDRESS}.")
    return host.strip("[]"), int(port)


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
