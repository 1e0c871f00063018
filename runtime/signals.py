"""Being told to stop: signals as something a main thread waits for."""

from __future__ import annotations

import signal
import socket


class Signals:
    """SIGTERM, SIGINT and SIGHUP, which from now on end `wait` instead of the process.

    Over a socket: the kernel may hand a signal to a thread of gRPC's or ONNX Runtime's, and then nothing would wake a main
    thread that waits for a lock, where alone Python runs its handlers.
    """

    def __init__(self) -> None:
        self._woken, self._wakes = socket.socketpair()
        self._wakes.setblocking(False)
        signal.set_wakeup_fd(self._wakes.fileno())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)

    def wait(self) -> signal.Signals:
        """The next one, or one that had come before."""
        return signal.Signals(self._woken.recv(1)[0])
