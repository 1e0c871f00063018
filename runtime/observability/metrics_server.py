"""Serve metrics over HTTP on a port of their own, with a bounded number of connections that no client can hold open."""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
from contextlib import suppress
from socketserver import TCPServer, ThreadingMixIn
from typing import Any

from prometheus_client import CollectorRegistry, MetricsHandler

from echovlm_edge.runtime.contracts.errors import NotPossibleHere

MAX_CONNECTIONS = 16  # one thread each; a further connection closes the oldest
SILENT_SECONDS = 10.0  # a client that neither sends nor reads for so long is disconnected
PLACE_SECONDS = 1.0  # for the oldest connection's thread to end

_log = logging.getLogger(__name__)


class MetricsServer(ThreadingMixIn, TCPServer):
    """Listens at once, and answers from `start` on; earlier connections wait.

    Raises:
        NotPossibleHere: the address cannot be used.
    """

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        """Listen; port 0 takes a free one."""
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._open: dict[Any, None] = {}  # connections, the oldest first
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._thread = threading.Thread(target=self.serve_forever, name="metrics", daemon=True)
        handler = type("Handler", (MetricsHandler,), {"registry": registry, "timeout": SILENT_SECONDS})
        try:
            super().__init__((host, port), handler)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no address"
            raise NotPossibleHere(
                f"Metrics cannot be served on {host}:{port} ({reason}): give another --metrics HOST:PORT."
            ) from None

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])

    def start(self) -> None:
        """Start to answer, in a thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop answering and listening."""
        if self._thread.is_alive():
            self.shutdown()
        self.server_close()

    def get_request(self) -> tuple[Any, Any]:
        """Accept the next connection."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(
                0.1
            )  # no descriptor is free: the connection stays queued, and accepting it would be retried without a pause
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer one connection in a thread; where there are too many, close the oldest."""
        with self._lock:
            oldest = next(iter(self._open)) if len(self._open) >= MAX_CONNECTIONS else None
        if oldest:
            with suppress(OSError):  # the connection has just ended
                oldest.shutdown(socket.SHUT_RDWR)
        if not self._places.acquire(timeout=PLACE_SECONDS):
            self.shutdown_request(request)
            return
        with self._lock:
            self._open[request] = None
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._release(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one connection, and release its place."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._release(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what failed: a client that disconnected at debug level, anything else as an error."""
        error = sys.exc_info()[1]
        level = logging.DEBUG if isinstance(error, OSError) else logging.ERROR
        _log.log(level, "a request for metrics failed with %s", type(error).__name__)

    def _release(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        self._places.release()
