"""STOW-RS (PS3.18 10.5): instances by HTTP POST of multipart/related, written to the spool as they arrive."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.dicom_node.receiving.peers import Peers
from echovlm_edge.runtime.dicom_node.receiving.receiver import FULL, OUT_OF_RESOURCES, SUCCESS, Receiver, Taken

SENDER = "STOW-RS"  # stands for an AE title
MOST_PARTS, MOST_PART_HEAD = 4096, 16 << 10
START_SECONDS = 10.0
_BOUNDARY = re.compile(r'boundary=(?:"([^"]{1,200})"|([^\s;"]{1,200}))', re.IGNORECASE)


class Malformed(Exception):
    """The body is no multipart/related message, or longer than it may be."""


class PartFiles:
    """Splits a multipart body into files, piece by piece: no part is ever in memory as a whole."""

    def __init__(self, boundary: str, new_file: Callable[[], Path], most_bytes: int) -> None:
        """Write each part to the path that `new_file` returns, at most `most_bytes` of it."""
        self._mark = b"\r\n--" + boundary.encode()
        self._rest = b"\r\n"  # so that the first boundary is found like the others
        self._new_file, self._most = new_file, most_bytes
        self._file: int | None = None
        self._in_head = self._over = False
        self._bytes = self.count = 0
        self._path, self._digest = Path(), hashlib.sha256()

    def feed(self, data: bytes) -> Iterator[tuple[Path, bytes]]:
        """Take the next piece of the body; yields the path and the digest of each part that it ends.

        Raises:
            Malformed: the body is not what it says, or a part is too long.
            OSError: the disk is full or fails.
        """
        self._rest += data
        while not self._over:
            if self._in_head:
                if not self._read_head():
                    return
                continue
            place = self._rest.find(self._mark)
            if place < 0:
                keep = len(self._mark) + 2
                self._put(self._rest[:-keep])
                self._rest = self._rest[-keep:]
                return
            if len(self._rest) < place + len(self._mark) + 2:
                return
            self._put(self._rest[:place])
            self._rest = self._rest[place + len(self._mark) :]
            if self._file is not None:
                yield self._end()
            self._over, self._in_head = self._rest.startswith(b"--"), True

    def fed(self, data: bytes) -> list[tuple[Path, bytes]]:
        """Do as `feed`, and return the parts."""
        return list(self.feed(data))

    @property
    def is_whole(self) -> bool:
        """Whether the last boundary has come."""
        return self._over

    def discard(self) -> None:
        """Remove the part that has not come to its end."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
            self._path.unlink(missing_ok=True)

    def _read_head(self) -> bool:
        head, found, rest = self._rest.partition(b"\r\n\r\n")
        if len(head) > MOST_PART_HEAD:
            raise Malformed
        if not found:
            return False
        self.count += 1
        if b"application/dicom" not in head.lower() or b"+" in head.lower() or self.count > MOST_PARTS:
            raise Malformed
        self._in_head, self._rest = False, rest
        self._path, self._bytes, self._digest = self._new_file(), 0, hashlib.sha256()
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        # A part may be empty: its boundary begins with the line break that ends its head.
        self._rest = b"\r\n" + self._rest if self._rest.startswith(self._mark[2:]) else self._rest
        return True

    def _put(self, data: bytes) -> None:
        if self._file is None:
            if data.strip():
                raise Malformed  # before the first boundary
            return
        self._bytes += len(data)
        if self._bytes > self._most:
            raise Malformed
        self._digest.update(data)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._file, rest) :]

    def _end(self) -> tuple[Path, bytes]:
        assert self._file is not None
        os.fsync(self._file)
        os.close(self._file)
        self._file = None
        return self._path, self._digest.digest()


@dataclass(frozen=True)
class StowOptions:
    """How to serve STOW-RS.

    Attributes:
        address: host and port; port 0 takes a free one.
        token: that senders give; empty for none.
        most_bytes: of one instance.
        certificate, key, client_ca: PEM files for TLS.
    """

    address: tuple[str, int]
    token: str = field(default="", repr=False)
    most_bytes: int = 1 << 30
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None


class StowDoor:
    """A running STOW-RS service at /studies and /studies/{StudyInstanceUID}.

    Raises:
        NotPossibleHere: the address or a certificate cannot be used.
    """

    def __init__(self, receiver: Receiver, new_file: Callable[[], Path], peers: Peers, options: StowOptions) -> None:
        """Listen."""
        self._receiver, self._new_file, self._peers, self._options = receiver, new_file, peers, options
        paths = ("/studies", "/studies/{study}")
        application = Starlette(routes=[Route(path, self._store, methods=["POST"]) for path in paths])
        tls: dict[str, Any] = {}
        if options.certificate and options.key:
            tls = {"ssl_certfile": options.certificate, "ssl_keyfile": options.key}
            tls |= {"ssl_ca_certs": options.client_ca, "ssl_cert_reqs": 2} if options.client_ca else {}
        config = uvicorn.Config(
            application, log_config=None, access_log=False, server_header=False, lifespan="off", **tls
        )
        host = options.address[0]
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(options.address)
            self._socket.listen(64)  # so that nobody is refused while the service starts
            config.load()
        except OSError as error:
            raise NotPossibleHere(
                f"STOW-RS cannot be served on {host}:{options.address[1]} ({error.strerror or error}): give another --stow."
            ) from None
        self.port = int(self._socket.getsockname()[1])
        self.tls = config.ssl
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
        if not self._peers.may_connect(address) or not self._knows(request):
            return Response(status_code=401, headers={"WWW-Authenticate": "Bearer"})
        content_type = request.headers.get("content-type", "")
        boundary = _BOUNDARY.search(content_type)
        if not content_type.lower().startswith("multipart/related") or not boundary:
            return Response(status_code=415)
        files = PartFiles(boundary[1] or boundary[2], self._new_file, self._options.most_bytes)
        study, taken = request.path_params.get("study", ""), list[Taken]()
        try:
            async for piece in request.stream():
                for path, digest in await run_in_threadpool(files.fed, piece):
                    taken.append(await run_in_threadpool(self._take, path, digest, address, study))
        except Malformed:
            return Response(status_code=400)
        except ClientDisconnect:
            return Response(status_code=400)
        except OSError:
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

    def _take(self, path: Path, digest: bytes, address: str, study: str) -> Taken:
        try:
            if not self._receiver.has_room(path.stat().st_size):
                return self._receiver.refused(OUT_OF_RESOURCES, SENDER, address, FULL)
            return self._receiver.take(path, digest, SENDER, address, study=study)
        except (OSError, sqlite3.Error):
            return self._receiver.refused(OUT_OF_RESOURCES, SENDER, address, FULL)
        finally:
            with suppress(OSError):
                path.unlink(missing_ok=True)


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
