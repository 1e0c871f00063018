"""`echovlm-serve`: loads a bundle and serves it over gRPC, with health checking and reflection, until it is told to stop."""

from __future__ import annotations

import argparse
import logging
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from echovlm.v1 import report_pb2, report_pb2_grpc
from echovlm_edge.runtime.command import run_command
from echovlm_edge.runtime.engine import ReportEngine
from echovlm_edge.runtime.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.service import MAX_GENERATIONS, Engine, ReportService

SERVICE = report_pb2.DESCRIPTOR.services_by_name["ReportService"].full_name
DEFAULT_ADDRESS = "127.0.0.1:50051"
WORKERS = MAX_GENERATIONS + 8  # so that health checks are answered while generations wait


@dataclass(frozen=True)
class ServerOptions:
    """How to serve."""

    listen: str = DEFAULT_ADDRESS
    port_file: Path | None = None
    max_message_bytes: int = 64 << 20
    grace_seconds: float = 10.0


class ReportServer:
    """A running server. Health says SERVING from the start, as the engine is loaded by then.

    Raises:
        NotPossibleHere: the address is not HOST:PORT, or cannot be listened on.
    """

    def __init__(self, engine: Engine, options: ServerOptions) -> None:
        """Listen and start serving; `port` 0 takes a free one."""
        host, port = parse_address(options.listen)
        limits = [("grpc.max_receive_message_length", options.max_message_bytes), ("grpc.max_send_message_length", -1)]
        self._server = grpc.server(ThreadPoolExecutor(WORKERS), options=[*limits, ("grpc.so_reuseport", 0)])
        self._health = health.HealthServicer()
        report_pb2_grpc.add_ReportServiceServicer_to_server(
            ReportService(engine, options.max_message_bytes), self._server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self.port = self._listen(host, port, options.listen)
        self._grace = options.grace_seconds
        self._server.start()
        for service in ("", SERVICE):
            self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        self.address = _join(host, self.port)
        if options.port_file:
            write_port_file(options.port_file, self.port)

    def stop(self) -> None:
        """Say NOT_SERVING, refuse new calls, and let running ones end within the grace."""
        self._health.enter_graceful_shutdown()
        self._server.stop(self._grace).wait()

    def _listen(self, host: str, port: int, listen: str) -> int:
        try:
            with socket.create_server((host, port), family=_family(host)):
                pass  # gRPC's own failure does not say why
            return int(self._server.add_insecure_port(_join(host, port)))
        except (OSError, RuntimeError) as error:
            # create_server appends the address, which the sentence has already.
            reason = (getattr(error, "strerror", None) or "the address cannot be used").partition(" (while")[0]
            raise NotPossibleHere(f"Cannot listen on {listen} ({reason}): give another --listen HOST:PORT.") from None


def parse_address(listen: str) -> tuple[str, int]:
    """HOST:PORT or [IPV6]:PORT.

    Raises:
        NotPossibleHere: it is neither.
    """
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise NotPossibleHere(f"{listen} is no address: give HOST:PORT, for example {DEFAULT_ADDRESS}.")
    return host.strip("[]"), int(port)


def write_port_file(path: Path, port: int) -> None:
    """Write the port so that a reader sees all of it or nothing.

    Raises:
        NotPossibleHere: the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(f"{port}\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise NotPossibleHere(f"The port file {path} cannot be written ({error.strerror}).") from None


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


class StopSignals:
    """SIGTERM and SIGINT, which from now on end `wait` instead of the process.

    Over a socket: the kernel may hand a signal to a thread of gRPC's or ONNX Runtime's, and then nothing would wake a main
    thread that waits for a lock, where alone Python runs its handlers.
    """

    def __init__(self) -> None:
        self._woken, self._wakes = socket.socketpair()
        self._wakes.setblocking(False)
        signal.set_wakeup_fd(self._wakes.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)

    def wait(self) -> None:
        """Return when one has come, or had come before."""
        self._woken.recv(1)


def _check(chosen: argparse.Namespace) -> None:
    checks = {
        "--threads must be at least 1": chosen.threads is None or chosen.threads >= 1,
        "--max-sequence must be at least 1": chosen.max_sequence is None or chosen.max_sequence >= 1,
        "--max-message-mb must be between 1 and 2047": 1 <= chosen.max_message_mb <= 2047,  # gRPC's limit is an int32
        "--grace must be between 0 and 3600 seconds": 0 <= chosen.grace <= 3600,
    }
    for rule, holds in checks.items():
        if not holds:
            raise InvalidInput(f"{rule}, got {getattr(chosen, rule.split()[0].strip('-').replace('-', '_'))}.")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="echovlm-serve", description="Serve a bundle over gRPC.")
    add = parser.add_argument
    add("--bundle", type=Path, required=True, help="folder that echovlm-build made")
    add(
        "--listen",
        default=DEFAULT_ADDRESS,
        metavar="HOST:PORT",
        help=f"port 0 takes a free one (default {DEFAULT_ADDRESS})",
    )
    add("--port-file", type=Path, metavar="F", help="write the port there once the server answers")
    add("--threads", type=int, metavar="N", help="default: one per core")
    add("--max-sequence", type=int, metavar="N", help="a smaller context than the bundle's, for less memory")
    add("--max-message-mb", type=int, default=64, metavar="N", help="largest request (default 64)")
    add("--grace", type=float, default=10.0, metavar="SECONDS", help="for running calls when told to stop (default 10)")
    add("--verify", action="store_true", help="check every file's hash before loading")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")

    def command() -> int:
        parse_address(chosen.listen)
        _check(chosen)
        engine = ReportEngine.open(
            chosen.bundle, threads=chosen.threads, max_sequence=chosen.max_sequence, verify=chosen.verify
        )
        options = ServerOptions(chosen.listen, chosen.port_file, chosen.max_message_mb << 20, chosen.grace)
        told = StopSignals()  # before the port file says that the server is there to be stopped
        server = ReportServer(engine, options)
        info = engine.info
        print(f"Serving {info.model} ({info.precision}, {info.target}) on {server.address}", flush=True)
        told.wait()
        server.stop()
        return 0

    return run_command(command)
