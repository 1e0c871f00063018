"""Start `echovlm-serve` or `echovlm-dicom` in a separate process, on a free port of loopback: for benchmarks, the demo and tests."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from echovlm_edge.runtime.contracts.errors import NotPossibleHere

START_SECONDS = 300.0  # for a bundle of the published size whose files are not cached
STOP_SECONDS = 60.0
POLL_SECONDS = 0.02


def script(name: str) -> str:
    """Return the path of a command of this environment."""
    return str(Path(sys.executable).with_name(name))


def free_port() -> int:
    """Return an unused port of loopback; another socket may take it before the caller does."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def port_file(folder: Path) -> Path:
    """Return the file in `folder` to which a server writes its port when it is ready."""
    return folder / "port"


def arguments(bundle: Path, folder: Path, *options: object) -> list[str]:
    """Return the command's arguments: the bundle, a free port that is written to a file in `folder`, and further options."""
    asked = ("--bundle", bundle, "--listen", "127.0.0.1:0", "--port-file", port_file(folder), *options)
    return [str(word) for word in asked]


def start(
    bundle: Path, folder: Path, *options: object, program: Sequence[str] = (), **streams: Any
) -> subprocess.Popen[Any]:
    """Start the command, or another `program` with the same arguments; `streams` are passed to `Popen`."""
    port_file(folder).unlink(missing_ok=True)
    return subprocess.Popen([*(program or [script("echovlm-serve")]), *arguments(bundle, folder, *options)], **streams)


def address_in(folder: Path) -> str:
    """Return the address of the server that wrote its port to `folder`."""
    return f"127.0.0.1:{port_file(folder).read_text(encoding='utf-8').strip()}"


@dataclass(frozen=True)
class Served:
    """A running server.

    Attributes:
        pid: of its process.
        address: HOST:PORT.
        start_seconds: time from its start to its first answered health check.
        log: the file of its stderr.
    """

    pid: int
    address: str
    start_seconds: float
    log: Path


@contextmanager
def serving(bundle: Path, folder: Path, *options: object, stdout: int | None = subprocess.DEVNULL) -> Iterator[Served]:
    """Serve a bundle until the context exits; the port and the log are written to `folder`.

    Raises:
        NotPossibleHere: the server exited, or did not answer in time; the message quotes its log.
    """
    log = folder / "server.log"
    started = time.perf_counter()
    with log.open("w") as lines, start(bundle, folder, *options, stdout=stdout, stderr=lines) as process:
        try:
            while not port_file(folder).exists():
                if process.poll() is not None or time.perf_counter() - started > START_SECONDS:
                    raise NotPossibleHere(f"echovlm-serve did not start on {bundle}: {log.read_text()}")
                time.sleep(POLL_SECONDS)
            address = address_in(folder)
            _await_health(address)
            yield Served(process.pid, address, time.perf_counter() - started, log)
        finally:
            stop(process)


def node_arguments(spool: Path, folder: Path, server: str, *options: object) -> list[str]:
    """Return the arguments of a DICOM node: its spool, a free port that is written to a file in `folder`, the server, and more."""
    asked = (
        "--spool",
        spool,
        "--listen",
        "127.0.0.1:0",
        "--port-file",
        port_file(folder),
        "--server",
        server,
        *options,
    )
    return [str(word) for word in asked]


def start_node(spool: Path, folder: Path, server: str, *options: object, **streams: Any) -> subprocess.Popen[Any]:
    """Start a DICOM node; `streams` are passed to `Popen`."""
    port_file(folder).unlink(missing_ok=True)
    command = [script("echovlm-dicom"), *node_arguments(spool, folder, server, *options)]
    return subprocess.Popen(command, **streams)


@contextmanager
def receiving(
    spool: Path, folder: Path, server: str, *options: object, stdout: int | None = subprocess.DEVNULL
) -> Iterator[Served]:
    """Run a DICOM node until the context exits; the port and the log are written to `folder`.

    Raises:
        NotPossibleHere: the node exited; the message quotes its log.
    """
    log = folder / "node.log"
    started = time.perf_counter()
    with log.open("a") as lines, start_node(spool, folder, server, *options, stdout=stdout, stderr=lines) as process:
        try:
            while not port_file(folder).exists():
                if process.poll() is not None or time.perf_counter() - started > START_SECONDS:
                    raise NotPossibleHere(f"echovlm-dicom did not start: {log.read_text()}")
                time.sleep(POLL_SECONDS)
            yield Served(process.pid, address_in(folder), time.perf_counter() - started, log)
        finally:
            stop(process)


def stop(process: subprocess.Popen[Any]) -> None:
    """Stop a server with SIGTERM, or kill it if that takes longer than `STOP_SECONDS`."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _await_health(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=START_SECONDS)
        assert check.status == health_pb2.HealthCheckResponse.SERVING
