"""This process's state for a service manager that asks for it (sd_notify(3))."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress

SEND_SECONDS = 1.0  # a manager that does not read holds nothing up


class ServiceManager:
    """The service manager of $NOTIFY_SOCKET; without one nothing is sent. After STOPPING=1 nothing else is sent."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        self._lock = threading.Lock()
        self._stopping = False

    def ready(self) -> None:
        """The server answers, or has reloaded."""
        self._notify("READY=1")

    def reloading(self) -> None:
        """A reload begins; `ready` ends it, however it went."""
        self._notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The server has begun to end."""
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
