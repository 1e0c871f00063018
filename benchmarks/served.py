"""`echovlm-serve` as a process of its own on a free port of loopback: the one way that benchmarks, the demo and tests start it."""

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
    """Where a command of this environment is."""
    return str(Path(sys.executable).with_name(name))


def free_port() -> int:
    """A port of loopback at which nobody listens; the next socket may take it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def port_file(folder: Path) -> Path:
    """The file in `folder` to which a server writes its port once it answers."""
    return folder / "port"


def arguments(bundle: Path, folder: Path, *options: object) -> list[str]:
    """The command's arguments: the bundle at a free port, which `folder` gets, and further options."""
    asked = ("--bundle", bundle, "--listen", "127.0.0.1:0", "--port-file", port_file(folder), *options)
    return [str(word) for word in asked]


def start(
    bundle: Path, folder: Path, *options: object, program: Sequence[str] = (), **streams: Any
) -> subprocess.Popen[Any]:
    """Start the command, or another `program` with its arguments; `streams` and the like are `Popen`'s."""
    port_file(folder).unlink(missing_ok=True)
    return subprocess.Popen([*(program or [script("echovlm-serve")]), *arguments(bundle, folder, *options)], **streams)


def address_in(folder: Path) -> str:
    """The address of the server that wrote its port to `folder`."""
    return f"127.0.0.1:{port_file(folder).read_text(encoding='utf-8').strip()}"


@dataclass(frozen=True)
class Served:
    """A server that answers.

    Attributes:
        pid: of its process.
        address: HOST:PORT.
        start_seconds: from its start until it answered a health check.
        log: the file of its stderr.
    """

    pid: int
    address: str
    start_seconds: float
    log: Path


@contextmanager
def serving(bundle: Path, folder: Path, *options: object, stdout: int | None = subprocess.DEVNULL) -> Iterator[Served]:
    """Serve a bundle for as long as the context lasts; `folder` gets the port and the log.

    Raises:
        NotPossibleHere: it ended, or did not answer in time; the sentence quotes its log.
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


def stop(process: subprocess.Popen[Any]) -> None:
    """End a server as its operator does, or at once where that takes too long."""
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
