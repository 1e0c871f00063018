"""STOW-RS (PS3.18 10.5): instances by HTTP POST of multipart/related, written to the spool as they arrive."""

from __future__ import annotations

import asyncio
import hmac
import re
import socket
import sqlite3
import ssl
import threading
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.dicom_node.receiving.bounded_connection import BoundedConnection
from echovlm_edge.runtime.dicom_node.receiving.part_files import Malformed, PartFiles
from echovlm_edge.runtime.dicom_node.receiving.peers import Peers
from echovlm_edge.runtime.dicom_node.receiving.received_file import TooMuch
from echovlm_edge.runtime.dicom_node.receiving.receiver import (
    FULL,
    OUT_OF_RESOURCES,
    SUCCESS,
    TOO_LARGE,
    Receiver,
    Taken,
)

SENDER = "STOW-RS"  # stands for an AE title
START_SECONDS = 10.0
_BOUNDARY = re.compile(r'boundary=(?:"([^"]{1,200})"|([^\s;"]{1,200}))', re.IGNORECASE)


@dataclass(frozen=True)
class StowOptions:
    """How to serve STOW-RS.

    Attributes:
        address: host and port; port 0 takes a free one.
        token: that senders give; empty for none.
        connections: open at once.
        idle_seconds: until a connection is closed on which nothing comes.
        tls: encrypts the connections.
    """

    address: tuple[str, int]
    token: str = field(default="", repr=False)
    connections: int = 32
    idle_seconds: float = 60.0
    tls: ssl.SSLContext | None = field(default=None, repr=False)


class StowDoor:
    """A running STOW-RS service at /studies and /studies/{StudyInstanceUID}.

    Raises:
        NotPossibleHere: the address or a certificate cannot be used.
    """

    def __init__(self, receiver: Receiver, peers: Peers, options: StowOptions) -> None:
        """Listen."""
        self._receiver, self._options = receiver, options
        paths = ("/studies", "/studies/{study}")
        application = Starlette(routes=[Route(path, self._store, methods=["POST"]) for path in paths])
        config = uvicorn.Config(
            application,
            http=partial(BoundedConnection, options.connections, options.idle_seconds, peers.may_connect),  # type: ignore[arg-type]
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
        )
        host = options.address[0]
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(options.address)
            self._socket.listen(64)  # so that nobody is refused while the service starts
            config.load()
            config.ssl = options.tls  # uvicorn's own would allow weaker ciphers than associations have
        except OSError as error:
            raise NotPossibleHere(
                f"STOW-RS cannot be served on {host}:{options.address[1]} ({error.strerror or error}): give another --stow."
            ) from None
        self.port = int(self._socket.getsockname()[1])
        self._server = uvicorn.Server(config)
        self._server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]  # they are the node's
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="stow", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening; a request that is being received is not acknowledged."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(START_SECONDS)

    async def _store(self, request: Request) -> Response:
        address = request.client.host if request.client else ""
        if not self._knows(request):
            return Response(status_code=401, headers={"WWW-Authenticate": "Bearer"})
        content_type = request.headers.get("content-type", "")
        boundary = _BOUNDARY.search(content_type)
        if not content_type.lower().startswith("multipart/related") or not boundary:
            return Response(status_code=415)
        files = PartFiles(boundary[1] or boundary[2], self._receiver.new_file)
        study, taken = request.path_params.get("study", ""), list[Taken]()
        pieces = request.stream()
        try:
            while True:
                async with asyncio.timeout(self._options.idle_seconds):
                    piece = await anext(pieces, None)
                if piece is None:
                    break
                for file in await run_in_threadpool(files.fed, piece):
                    taken.append(await run_in_threadpool(self._receiver.take, file, SENDER, address, study=study))
        except (Malformed, ClientDisconnect):
            return Response(status_code=400)
        except TimeoutError:
            return Response(status_code=408)
        except TooMuch:
            self._receiver.refused(OUT_OF_RESOURCES, SENDER, address, TOO_LARGE)
            return Response(status_code=413)
        except (OSError, sqlite3.Error):
            self._receiver.refused(OUT_OF_RESOURCES, SENDER, address, FULL)
            return Response(status_code=503)
        finally:
            await run_in_threadpool(files.discard)
        if not files.is_whole or not taken:
            return Response(status_code=400)
        return _answer(taken)

    def _knows(self, request: Request) -> bool:
        if not self._options.token:
            return True
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._options.token.encode())


def _answer(taken: list[Taken]) -> Response:
    """Answer with a Store Instances Response (PS3.18 I.2): 200 if all were stored, 202 if some were, otherwise 409."""
    stored = [one for one in taken if one.status == SUCCESS]
    failed = [one for one in taken if one.status != SUCCESS]
    answer: dict[str, Any] = {}
    if stored:
        answer["00081199"] = {"vr": "SQ", "Value": [_reference(one) for one in stored]}
    if failed:
        reasons = [{**_reference(one), "00081197": {"vr": "US", "Value": [one.status]}} for one in failed]
        answer["00081198"] = {"vr": "SQ", "Value": reasons}
    code = 200 if not failed else 202 if stored else 409
    if failed and not stored and all(one.status == OUT_OF_RESOURCES for one in failed):
        code = 503
    return JSONResponse(answer, code, media_type="application/dicom+json")


def _reference(one: Taken) -> dict[str, Any]:
    uids = {"00081150": one.sop_class, "00081155": one.sop_instance}
    return {tag: {"vr": "UI", "Value": [uid]} for tag, uid in uids.items() if uid}
