"""Servers with an HTTP door on loopback, and requests to them."""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx

from echovlm_edge.runtime.serving.access.identification import Access
from echovlm_edge.runtime.serving.http.exchange.door_options import HttpOptions
from echovlm_edge.runtime.serving.service import Engine
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions

HTTP = HttpOptions("127.0.0.1:0")
OPTIONS = ServerOptions("127.0.0.1:0", grace_seconds=0.2, http=HTTP)


@contextmanager
def http_server(
    engine: Engine, options: ServerOptions = OPTIONS, access: Access | None = None
) -> Iterator[tuple[ReportServer, httpx.Client]]:
    """Serve an engine by gRPC and HTTP; yields the server, and a client of its HTTP door."""
    server = ReportServer(engine, replace(options, http=options.http or HTTP), access=access)
    try:
        with httpx.Client(base_url=f"http://{server.http_address}", timeout=30) as client:
            yield server, client
    finally:
        server.stop()


def data_uri(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def pictured(text: str, *urls: str) -> list[dict[str, Any]]:
    """The content of a message with pictures."""
    return [{"type": "text", "text": text}, *({"type": "image_url", "image_url": {"url": url}} for url in urls)]


def raw(address: str, sent: bytes, seconds: float = 10.0) -> bytes:
    """Send bytes on a connection of their own; returns all that comes until the server closes it."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), seconds) as connection:
        connection.sendall(sent)
        received = b""
        while piece := connection.recv(65536):
            received += piece
        return received
