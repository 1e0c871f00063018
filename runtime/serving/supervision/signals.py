"""Signals to stop or to reload, for which the main thread waits."""

from __future__ import annotations

import signal
import socket
from concurrent.futures import Future
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

STOPS = frozenset({signal.SIGTERM, signal.SIGINT})


class Signals:
    """Make SIGTERM, SIGINT and SIGHUP end `wait` instead of the process, until the context ends.

    A socket wakes `wait`, because the kernel may deliver a signal to a thread of gRPC or ONNX Runtime: then nothing would wake a
    main thread that waits for a lock, and only the main thread runs Python's handlers. The handlers record which signals
    arrived, so that none is lost if the socket is full.
    """

    def __init__(self) -> None:
        self._woken, self._wakes = socket.socketpair()
        self._wakes.setblocking(False)
        self._pending: set[int] = set()
        signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._came) for number in (*STOPS, signal.SIGHUP)}

    def __enter__(self) -> Signals:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        self._woken.close()
        self._wakes.close()

    def wait(self) -> signal.Signals:
        """Wait for a signal, or return one that has arrived already: a stop before a SIGHUP, and many SIGHUPs as one."""
        while not self._pending:
            self._woken.recv(4096)
        if stops := self._pending & STOPS:
            return signal.Signals(stops.pop())
        self._pending.discard(signal.SIGHUP)  # only this one: a stop may have arrived since
        return signal.SIGHUP

    def stopped_before(self, work: Future[Any]) -> bool:
        """Wait for `work` to end; returns True if a stop came first. A SIGHUP is left for `wait`."""
        work.add_done_callback(lambda _: self._wake())
        while not work.done():
            if self._pending & STOPS:
                return True
            self._woken.recv(4096)
        return False

    def _wake(self) -> None:
        with suppress(OSError):  # the socket is full, so that it wakes anyway, or closed
            self._wakes.send(b"\0")

    def _came(self, number: int, frame: FrameType | None) -> None:
        self._pending.add(number)
