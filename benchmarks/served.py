"""echovlm-serve as a user starts it: a process of its own, on loopback, for as long as it is measured."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

START_LIMIT = 300.0


def script(name: str) -> str:
    """Where a command of this environment is."""
    return str(Path(sys.executable).with_name(name))


@contextmanager
def serving(bundle: Path, folder: Path, *options: str) -> Iterator[tuple[int, str, float]]:
    """A server of its own process; yields its pid, its address, and how long it took to answer a health check."""
    port_file, log = folder / "port", folder / "server.log"
    port_file.unlink(missing_ok=True)
    started = time.perf_counter()
    command = (
        script("echovlm-serve"),
        "--bundle",
        bundle,
        "--listen",
        "127.0.0.1:0",
        "--port-file",
        port_file,
        *options,
    )
    with (
        log.open("w") as lines,
        subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=lines) as process,
    ):
        try:
            while not port_file.exists():
                if process.poll() is not None or time.perf_counter() - started > START_LIMIT:
                    raise SystemExit(f"echovlm-serve did not start:\n{log.read_text()}")
                time.sleep(0.02)
            address = f"127.0.0.1:{port_file.read_text().strip()}"
            _await_health(address)
            yield process.pid, address, time.perf_counter() - started
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def _await_health(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=START_LIMIT)
        assert check.status == health_pb2.HealthCheckResponse.SERVING
