"""Run a command that serves on loopback in a separate process, and stop it: what waits for it and ends it is written once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from echovlm_edge.runtime.contracts.errors import NotPossibleHere

START_SECONDS = 300.0  # for a bundle of the published size whose files are not cached
STOP_SECONDS = 60.0
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Served:
    """A running server.

    Attributes:
        pid: of its process.
        address: HOST:PORT.
        start_seconds: time from its start until it was ready.
        log: the file of its stderr.
    """

    pid: int
    address: str
    start_seconds: float
    log: Path


def script(name: str) -> str:
    """Return the path of a command of this environment."""
    return str(Path(sys.executable).with_name(name))


def port_file(folder: Path) -> Path:
    """Return the file in `folder` to which a server writes its port when it is ready."""
    return folder / "port"


def address_in(folder: Path) -> str:
    """Return the address of the server that wrote its port to `folder`."""
    return f"127.0.0.1:{port_file(folder).read_text(encoding='utf-8').strip()}"


@contextmanager
def running(
    start: Callable[[IO[str]], subprocess.Popen[Any]], folder: Path, log: Path, named: str, mode: str = "w"
) -> Iterator[Served]:
    """Run a server until the context exits.

    Args:
        start: starts the process, whose stderr is the file that it is given; it writes its port to `port_file(folder)`.
        folder: of the port's file.
        log: the file of its stderr, opened in `mode`.
        named: what the error's sentence calls it.
        mode: `w`, or `a` to append.

    Raises:
        NotPossibleHere: it exited, or was not ready in time; the message quotes its log.
    """
    started = time.perf_counter()
    with log.open(mode, encoding="utf-8") as lines, start(lines) as process:
        try:
            while not port_file(folder).exists():
                if process.poll() is not None or time.perf_counter() - started > START_SECONDS:
                    raise NotPossibleHere(f"{named} did not start: {log.read_text(encoding='utf-8')}")
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
