"""The server's side of one decoding process: send a request and read its answer; after a failure it is never used again."""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from echovlm_edge.runtime.contracts.memory_file import MemoryFile, MemoryFileWriter
from echovlm_edge.runtime.imaging.image_file import ImageLimits
from echovlm_edge.runtime.imaging.sandbox.confinement import Confinement
from echovlm_edge.runtime.imaging.sandbox.worker import (
    ANSWERED,
    ASKED,
    OUT_OF_MEMORY,
    PIECE_BYTES,
    READY,
    UNWANTED,
    packed,
    unpacked,
)

WORKER = (sys.executable, "-I", "-m", "echovlm_edge.runtime.imaging.sandbox.worker")
START_SECONDS = 60.0
GRACE_SECONDS = 2.0  # for a process to confirm that it cancelled a request
POLL_MS = 50  # between two polls of whether the caller is still there
ENVIRONMENT = {
    "PATH": os.defpath,
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OPJ_NUM_THREADS": "1",
}
# Signals that a file can cause in its decoder. Any other signal comes from outside: a kill, or the kernel out of memory.
OF_THE_FILE = tuple(
    -number
    for number in (
        *(signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE, signal.SIGSYS, signal.SIGTRAP),
        *(signal.SIGXFSZ, signal.SIGXCPU),
    )
)


class Lost(Exception):
    """The process is gone, or does not follow the protocol, which says nothing about the file."""


class Unresponsive(Lost):
    """The process does not answer in time, although it is not busy with the file."""


class Crashed(Exception):
    """The file crashed its process."""


class NoMemory(Exception):
    """The file takes more memory than it may."""


class TooSlow(Exception):
    """The file takes longer than it may."""


class Unwanted(Exception):
    """The caller is gone."""


@dataclass(frozen=True)
class Request:
    """A request about one file.

    Attributes:
        kind: MEASURE or DECODE of `worker`.
        header: the request's parameters, as JSON.
        data: the file; a `MemoryFile` is passed without a copy.
        most_bytes: the largest answer that is accepted.
        seconds: the time limit of the answer.
        stopped: returns True once nobody wants the answer any more.
    """

    kind: int
    header: dict[str, Any] = field(repr=False)
    data: bytes | MemoryFile = field(repr=False)
    most_bytes: int
    seconds: float
    stopped: Callable[[], bool]


class DecodeProcess:
    """One process, used by one thread at a time.

    Attributes:
        confinement: which confinements are in force.
        undecodable: encodings that it cannot decode, as media types or transfer syntaxes.
    """

    def __init__(self, memory_bytes: int, user: int, images: ImageLimits) -> None:
        """Start the process and wait until it is ready.

        Raises:
            OSError: no process can be started.
            Lost: the process ends at once.
        """
        self._requests, theirs = socket.socketpair()
        self._requests.setblocking(False)
        self._spare: MemoryFileWriter | None = (
            None  # for the next file, which may come when there is no free descriptor
        )
        try:
            self._process = subprocess.Popen(
                [*WORKER, str(memory_bytes), str(user), json.dumps(asdict(images))],
                bufsize=0,
                stdin=theirs.fileno(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=ENVIRONMENT,
                cwd="/",
            )
        except BaseException:
            self._requests.close()
            raise
        finally:
            theirs.close()
        assert self._process.stdout
        self._answers = self._process.stdout.fileno()
        self._clean = False  # whether both pipes are empty
        try:
            said, _ = unpacked(
                memoryview(self._answer(READY, PIECE_BYTES, time.monotonic() + START_SECONDS, lambda: False))
            )
            self.confinement = Confinement(tuple(said["holds"]), tuple((name, why) for name, why in said["lacks"]))
            self.undecodable = tuple(said["undecodable"])
            self._spare = MemoryFileWriter()
            self._clean = True
        finally:
            if not self._clean:
                self.end()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def usable(self) -> bool:
        """Check whether the process is alive, and no answer to an earlier request is pending."""
        return self._clean and self._process.poll() is None and not self._readable(0)

    def ask(self, request: Request) -> memoryview:
        """Send a request and return its answer. Any exception ends the process, unless the process has answered.

        Raises:
            OSError: there is no memory or descriptor for the file. The process can be used again.
            Lost, Crashed, NoMemory, TooSlow, Unwanted: as their docstrings say.
        """
        file = request.data if isinstance(request.data, MemoryFile) else self._written(request.data)
        try:
            return self._asked(request, file)
        finally:
            if file is not request.data:
                file.close()
                with suppress(OSError):
                    self._spare = MemoryFileWriter()

    def end(self) -> None:
        """End the process: by a signal where that is allowed, and by closing both pipes."""
        self._clean = False
        if self._spare:
            self._spare.close()
        for way in (self._requests, self._process.stdout):
            if way:
                with suppress(OSError):
                    way.close()
        with suppress(OSError):
            self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE_SECONDS)

    def _written(self, data: bytes) -> MemoryFile:
        writer, self._spare = self._spare or MemoryFileWriter(), None
        try:
            writer.write(data)
            return writer.finish()
        finally:
            writer.close()

    def _asked(self, request: Request, file: MemoryFile) -> memoryview:
        number = secrets.randbits(64)
        body = b"".join(packed(request.header))
        head = ASKED.pack(number, request.kind, len(body), request.most_bytes)
        deadline = time.monotonic() + request.seconds
        self._clean = False
        try:
            self._send(head + body, deadline, request.stopped, (file.descriptor,))
            return memoryview(self._answer(number, request.most_bytes, deadline, request.stopped))
        finally:
            if not self._clean:
                self.end()

    def _send(self, message: bytes, deadline: float, stopped: Callable[[], bool], files: tuple[int, ...] = ()) -> None:
        """Send a message, with descriptors of files on its first byte."""
        poll = select.poll()
        poll.register(self._requests, select.POLLOUT)
        view, at = memoryview(message), 0
        while at < len(view):
            if not poll.poll(POLL_MS):
                if stopped():
                    raise Unwanted
                if time.monotonic() > deadline:
                    raise Unresponsive
                continue
            try:
                at += socket.send_fds(self._requests, [view[at:]], () if at else files)
            except BlockingIOError:
                continue
            except OSError:
                raise Lost from None

    def _answer(self, number: int, most_bytes: int, deadline: float, stopped: Callable[[], bool]) -> bytearray:
        take_back = ASKED.pack(number, UNWANTED, 0, 0)
        patience = _Patience(deadline, stopped, lambda: self._send(take_back, deadline, lambda: False))
        answered, ended, size = ANSWERED.unpack(self._read(ANSWERED.size, patience))
        if answered != number or size > most_bytes:
            raise Lost
        body = self._read(size, patience)
        self._clean = True
        if patience.over and ended != -signal.SIGSTOP:
            raise patience.over
        if ended == OUT_OF_MEMORY:
            raise NoMemory
        if ended > 0 or ended in OF_THE_FILE:
            raise Crashed
        if ended:
            raise Unresponsive if patience.over else Lost
        return body

    def _read(self, count: int, patience: _Patience) -> bytearray:
        found = bytearray(count)
        view, at = memoryview(found), 0
        while at < count:
            patience.check()
            if self._readable(POLL_MS):
                got = os.readv(self._answers, [view[at:]])
                if got == 0:
                    raise Lost
                at += got
        return found

    def _readable(self, milliseconds: int) -> bool:
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        return bool(poll.poll(milliseconds))


class _Patience:
    """How long to wait for an answer. After that the request is cancelled, and the process has some time to confirm it."""

    def __init__(self, deadline: float, stopped: Callable[[], bool], take_back: Callable[[], None]) -> None:
        self.over: Unwanted | TooSlow | None = None  # why the request was cancelled
        self._deadline, self._stopped, self._take_back = deadline, stopped, take_back

    def check(self) -> None:
        """Raise `Unresponsive` where that time is over too, or `Unwanted` where nobody waits for the answer."""
        late = time.monotonic() > self._deadline
        if self.over:
            if late:
                raise self.over if isinstance(self.over, Unwanted) else Unresponsive
        elif late or self._stopped():
            self._take_back()
            self.over = TooSlow() if late else Unwanted()
            self._deadline = time.monotonic() + GRACE_SECONDS
