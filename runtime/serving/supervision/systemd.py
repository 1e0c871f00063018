"""Report this process's state to a service manager that asks for it (sd_notify(3))."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress

SEND_SECONDS = 1.0  # a manager that does not read must not block the server


class ServiceManager:
    """The service manager behind $NOTIFY_SOCKET; without that nothing is sent. After STOPPING=1 nothing else is sent."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        self._lock = threading.Lock()
        self._stopping = False

    def ready(self) -> None:
        """Report that the server answers, or has reloaded."""
        self._notify("READY=1")

    def reloading(self) -> None:
        """Report that a reload begins; `ready` reports its end, even if it failed."""
        self._notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """Report that the server is shutting down."""
        with self._lock:
            self._send("STOPPING=1")
            self._stopping = True

    def _notify(self, state: str) -> None:
        with self._lock:
            if not self._stopping:
                self._send(state)

    def _send(self, state: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
            suppress(OSError),
        ):  # the manager is gone
            manager.settimeout(SEND_SECONDS)
            manager.sendto(state.encode(), address)
