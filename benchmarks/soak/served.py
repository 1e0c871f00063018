"""The server under test, its memory and its metrics, and a known cart's connection to it."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.served import free_port, serving
from echovlm.v1 import report_pb2_grpc

SLOTS, QUEUE = 8, 4
TOKENS = {"cart": "the-cart's-token", "hostile": "a-stolen-token"}


@dataclass(frozen=True)
class Soaked:
    """The server under test: its process, its address, and the URLs of its HTTP door and its metrics."""

    pid: int
    address: str
    http: str
    metrics: str

    def rss(self) -> int:
        """Return the memory of the server and its decoding processes in bytes; without the short-lived processes of single files."""
        server, taken = psutil.Process(self.pid), 0
        for process in (server, *server.children()):
            with suppress(psutil.NoSuchProcess):
                taken += process.memory_info().rss
        return taken

    def metric(self, name: str) -> float:
        """Read a metric without labels."""
        with urllib.request.urlopen(self.metrics, timeout=30) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        return next(sample.value for family in families for sample in family.samples if sample.name == name)


@contextmanager
def soaked(bundle: Path, folder: Path, *options: str) -> Iterator[Soaked]:
    """Start a server with two clients and few places for calls."""
    clients, metrics, http = folder / "clients.toml", f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    tables = [f'[{name}]\ntoken_sha256 = "{sha256(token.encode()).hexdigest()}"\n' for name, token in TOKENS.items()]
    clients.write_text("".join(tables) + "max_calls = 4\n")  # the hostile client's
    limits = (
        "--slots",
        SLOTS,
        "--queue",
        QUEUE,
        "--clients",
        clients,
        "--metrics",
        metrics,
        "--http",
        http,
        "--log",
        "json",
        "--grace",
        5,
    )
    with serving(bundle, folder, *limits, *options) as served:
        yield Soaked(served.pid, served.address, f"http://{http}", f"http://{metrics}/metrics")


class _WithToken(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Adds the token to every call."""

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(self._known(details), request)

    def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(self._known(details), request)

    def _known(self, details: Any) -> Any:
        return details._replace(metadata=(("authorization", f"Bearer {TOKENS['cart']}"),))


@contextmanager
def connected(address: str) -> Iterator[report_pb2_grpc.ReportServiceStub]:
    """Open a separate connection for the known cart."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options=options) as channel:
        yield report_pb2_grpc.ReportServiceStub(grpc.intercept_channel(channel, _WithToken()))
