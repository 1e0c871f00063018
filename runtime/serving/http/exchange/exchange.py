"""One HTTP request and its answer: the body is counted as it arrives, and what is sent must be read in time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from threading import Event

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope, Send

from echovlm_edge.runtime.contracts.statuses import REQUEST_ID
from echovlm_edge.runtime.serving.http.exchange.refusals import Refusal, Refused

JSON, EVENTS = "application/json", "text/event-stream"
CERTIFICATE = "certificate"  # the key of a connection's state
SAFETY = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}

__all__ = ["ClientDisconnect", "Exchange"]


def as_json(value: object) -> bytes:
    """Encode a value; a character that UTF-8 does not have becomes a question mark."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


class Answered(Exception):
    """The request has been refused: whoever handles it has nothing more to do."""


class Exchange:
    """A request, and its answer, of which there is one. It is an `Arrival`, so that its caller can be identified.

    Attributes:
        request_id: of its call, for the answer's headers; empty before there is one.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, delivery_seconds: float) -> None:
        """Wrap an ASGI request; each piece of the answer must be read within `delivery_seconds`."""
        self._request, self._receive, self._send = Request(scope, receive), receive, send
        self._delivery_seconds = delivery_seconds
        self.request_id = ""
        self._begun = False

    def header(self, name: str) -> str:
        """Return a header of the request, or an empty text."""
        return str(self._request.headers.get(name, ""))

    def path(self, name: str) -> str:
        """Return a part of the path by its name in the route."""
        return str(self._request.path_params[name])

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]]:
        """List the headers that name the caller and its trace, see `Arrival`."""
        return [
            (name, value) for name, value in self._request.headers.items() if name in ("authorization", "traceparent")
        ]

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return the names in the caller's certificate, see `Arrival`."""
        names: Mapping[str, Iterable[bytes]] = self._request.scope.get("state", {}).get(CERTIFICATE, {})
        return names

    def peer(self) -> str:
        """Return the caller's address, see `Arrival`."""
        client = self._request.client
        if client is None:
            return "unknown"
        return f"ipv6:[{client.host}]:{client.port}" if ":" in client.host else f"ipv4:{client.host}:{client.port}"

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives.

        Raises:
            ClientDisconnect: the client is gone.
        """
        async for piece in self._request.stream():
            if piece:
                yield piece

    async def body(self, most: int) -> bytearray:
        """Read the whole body.

        Raises:
            Refused: it has more than `most` bytes; a longer one is not read to its end.
            ClientDisconnect: the client is gone.
        """
        refuse_longer(self.header("content-length"), most)
        whole = bytearray()
        async for piece in self.pieces():
            if len(whole) + len(piece) > most:
                raise too_long(most)
            whole += piece
        return whole

    @asynccontextmanager
    async def watched(self, gone: Sequence[Event]) -> AsyncIterator[None]:
        """Set the events `gone` if the client disconnects meanwhile; the body must have been read."""

        async def watch() -> None:
            while (await self._receive())["type"] != "http.disconnect":
                pass
            for event in gone:
                event.set()

        watching = asyncio.ensure_future(watch())
        try:
            yield
        finally:
            watching.cancel()

    async def answer(self, body: bytes, media_type: str = JSON, status: int = 200, **headers: str) -> None:
        """Send the whole answer."""
        await self._begin(status, {"Content-Type": media_type, "Content-Length": str(len(body)), **headers})
        await self._put({"type": "http.response.body", "body": body})

    async def unchanged(self, headers: Mapping[str, str]) -> None:
        """Answer that the client has the present state already."""
        await self._begin(304, headers)
        await self._put({"type": "http.response.body"})

    async def refuse(self, refusal: Refusal) -> None:
        """Send an error; as an event, where a stream has begun."""
        if self._begun:
            await self.put(b"data: " + refusal.body + b"\n\n")
            await self.end()
        else:
            await self.answer(refusal.body, JSON, refusal.status, **refusal.headers)

    async def begin(self) -> None:
        """Begin a stream of server-sent events; does nothing where it has begun."""
        if not self._begun:
            await self._begin(200, {"Content-Type": EVENTS})

    async def put(self, piece: bytes) -> None:
        """Send a piece of the stream."""
        await self._put({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self) -> None:
        """End the stream."""
        await self._put({"type": "http.response.body"})

    async def _begin(self, status: int, headers: Mapping[str, str]) -> None:
        self._begun = True
        own = {REQUEST_ID: self.request_id} if self.request_id else {}
        lines = {**SAFETY, **headers, **own}
        encoded = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in lines.items()]
        await self._put({"type": "http.response.start", "status": status, "headers": encoded})

    async def _put(self, message: Message) -> None:
        with _in_time():
            await asyncio.wait_for(self._send(message), self._delivery_seconds)


@contextmanager
def _in_time() -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise ClientDisconnect from None  # it does not read: as if it were gone


def refuse_longer(stated: str, most: int) -> None:
    """Refuse a body by the Content-Length that is stated, if one is, before a byte of it is read.

    Raises:
        Refused: it is more than `most` bytes.
    """
    if stated.isdecimal() and int(stated[:20]) > most:
        raise too_long(most)


def too_long(most: int) -> Refused:
    """Make the error about a body of more than `most` bytes."""
    sentence = f"The request has more than {most:,} bytes: send fewer or smaller images."
    return Refused(sentence, "request_too_large", status=413)
