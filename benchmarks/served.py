"""Start `echovlm-serve` or `echovlm-dicom` in a separate process, on a free port of loopback: for benchmarks, the demo and tests."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from echovlm_edge.runtime.resources.loopback_process import (
    START_SECONDS,
    Served,
    address_in,
    port_file,
    running,
    script,
    stop,
)

__all__ = ["Served", "address_in", "free_port", "port_file", "receiving", "script", "serving", "start", "stop"]


def free_port() -> int:
    """Return an unused port of loopback; another socket may take it before the caller does."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


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


@contextmanager
def serving(bundle: Path, folder: Path, *options: object, stdout: int | None = subprocess.DEVNULL) -> Iterator[Served]:
    """Serve a bundle until the context exits; the port and the log are written to `folder`. It answers a health check.

    Raises:
        NotPossibleHere: the server exited, or did not answer in time; the message quotes its log.
    """
    started = time.perf_counter()
    with running(
        lambda lines: start(bundle, folder, *options, stdout=stdout, stderr=lines),
        folder,
        folder / "server.log",
        f"echovlm-serve on {bundle}",
    ) as served:
        _await_health(served.address)
        yield replace(served, start_seconds=time.perf_counter() - started)


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
    with running(
        lambda lines: start_node(spool, folder, server, *options, stdout=stdout, stderr=lines),
        folder,
        folder / "node.log",
        "echovlm-dicom",
        mode="a",
    ) as served:
        yield served


def _await_health(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=START_SECONDS)
        assert check.status == health_pb2.HealthCheckResponse.SERVING
