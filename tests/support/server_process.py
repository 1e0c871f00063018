"""Run `echovlm-serve` as `benchmarks.served` starts it, with parts replaced to inject a fault, and read its output."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from benchmarks import served
from tests.support.stand_in_gpu import preamble

SECONDS = 60  # timeout for expected events: only a failing test waits this long
STARTS = re.compile(
    r"\b(memory: The server needs|image decoding is confined by:|the bundle writes its \d+ golden tokens,) "
)
COMMAND = """
from echovlm_edge.runtime.serving.supervision.serve_command import main
raise SystemExit(main())
"""


class ServerProcess:
    """A running command and its output so far."""

    def __init__(self, bundle: Path, folder: Path, options: tuple[str, ...], patch: str, env: dict[str, str]) -> None:
        self._folder = folder
        self.process = served.start(
            bundle,
            folder,
            *options,
            program=[sys.executable, "-c", preamble() + patch + COMMAND],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env or None,
        )
        self._children: list[psutil.Process] = []
        self._lines: list[str] = []
        self._output: list[str] = []
        self._log: list[str] = []
        self._more = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=(pipe,), daemon=True)
            for pipe in (self.process.stdout, self.process.stderr)
        ]
        for reader in self._readers:
            reader.start()

    @property
    def address(self) -> str:
        """Wait until it serves."""
        self.wait_for("Serving ")
        return served.address_in(self._folder)

    @property
    def said(self) -> str:
        """Return all of stdout and stderr."""
        with self._more:
            return "".join(self._lines)

    def wait_for(self, words: str, count: int = 1) -> None:
        """Wait until `words` have appeared this many times."""

        def said() -> bool:
            return "".join(self._lines).count(words) >= count

        with self._more:
            assert self._more.wait_for(lambda: said() or not self._reads(), SECONDS) and said(), "".join(self._lines)

    @property
    def output(self) -> str:
        """Return all of stdout."""
        with self._more:
            return "".join(self._output)

    @property
    def log(self) -> list[str]:
        """Return the lines of stderr after those of every start: memory needs, and sandbox measures."""
        with self._more:
            return [line.rstrip("\n") for line in self._log if not STARTS.search(line)]

    def tell(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._children += psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(number)

    def reload(self) -> None:
        """Send SIGHUP."""
        self.process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        """Send SIGTERM, and check that the process ends with code 0 and leaves neither a traceback nor child processes."""
        self.tell(signal.SIGTERM)
        assert self.end() == 0, self.said
        assert "Traceback" not in self.said and "Exception" not in self.said, self.said

    def end(self) -> int:
        """Wait for its end; returns the exit code. Checks that processes it had started by then have ended, too."""
        code = self.process.wait(SECONDS)
        for reader in self._readers:
            reader.join(SECONDS)
        _, alive = psutil.wait_procs(self._children, timeout=SECONDS)
        assert not alive, "a process outlived the server"
        return code

    def _reads(self) -> bool:
        return any(reader.is_alive() for reader in self._readers)

    def _read(self, pipe: Iterator[str]) -> None:
        for line in pipe:
            with self._more:
                self._lines.append(line)
                (self._output if pipe is self.process.stdout else self._log).append(line)
                self._more.notify_all()
        with self._more:
            self._more.notify_all()


@contextmanager
def server_process(
    bundle: Path, folder: Path, *options: str, patch: str = "", env: dict[str, str] | None = None
) -> Iterator[ServerProcess]:
    """Start the command; if it still runs at the end, it is killed."""
    started = ServerProcess(bundle, folder, options, patch, env or {})
    try:
        yield started
    finally:
        children = []
        with suppress(psutil.Error):
            children = psutil.Process(started.process.pid).children(recursive=True)
        started.process.kill()
        started.process.wait()
        for child in children:
            with suppress(psutil.Error):
                child.kill()
