"""The standard health service (grpc.health.v1), for everybody who can connect; it answers even while the server is busy."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2

from echovlm_edge.runtime.contracts.errors import Busy, InvalidInput, NotFound
from echovlm_edge.runtime.serving.transport.handlers import Context, Handler, streaming_handler

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
MAX_REQUEST_BYTES = 1024  # a larger request names no service of this server
MAX_WATCHES, MAX_WATCHES_PER_HOST = 256, 32


class Health(grpc.GenericRpcHandler):
    """The methods Check and Watch. All names have the same status, as this server is one service. Runs on one event loop.

    Callers need no token, and a request may be as large as the largest message. So only one request is read at a time, and only
    for a moment. A call that arrives meanwhile, or is slow, is answered without reading its request: a client that holds
    requests back on purpose, or sends large ones, neither fills the memory nor makes a load balancer believe that the server is
    gone.
    """

    def __init__(self, names: Iterable[str], read_seconds: float) -> None:
        """Start as NOT_SERVING; `names` are those besides the server's own empty name, `read_seconds` is for one request."""
        self._names, self._read_seconds = frozenset(["", *names]), read_seconds
        self._status = NOT_SERVING
        self._changed = asyncio.Condition()
        self._closed = self._reading = False
        self._watches: Counter[str] = Counter()  # by host

    @property
    def serving(self) -> bool:
        """Whether the status is SERVING."""
        return self._status == SERVING

    async def set(self, serving: bool) -> None:
        """Set the status and notify every watcher; after `close` it stays NOT_SERVING."""
        async with self._changed:
            self._status = SERVING if serving and not self._closed else NOT_SERVING
            self._changed.notify_all()

    async def close(self) -> None:
        """Set NOT_SERVING, and end every watch once that is sent."""
        self._closed = True
        await self.set(False)

    def service(self, details: grpc.HandlerCallDetails) -> Handler | None:
        """Return the handler of a method of this service, or None for another service's."""
        for name, answer in (("Check", self._check), ("Watch", self._watch)):
            if details.method == f"/{health.SERVICE_NAME}/{name}":
                return streaming_handler(answer)
        return None

    async def _check(self, context: Context) -> None:
        await self._read_name(context)
        await context.write(_encoded(self._status))

    async def _watch(self, context: Context) -> None:
        await self._read_name(context)
        host = context.peer().rpartition(":")[0]
        if self._watches.total() >= MAX_WATCHES or self._watches[host] >= MAX_WATCHES_PER_HOST:
            raise Busy("Too many calls are watching this server's health: try again later.", 10.0)
        self._watches[host] += 1
        try:
            sent = None
            while not (self._closed and sent == self._status):
                if sent != self._status:
                    sent = self._status
                    await context.write(_encoded(sent))
                async with self._changed:
                    await self._changed.wait_for(lambda seen=sent: self._closed or self._status != seen)  # type: ignore[misc]
        finally:
            self._watches[host] -= 1
            self._watches += Counter()  # drops hosts without watches

    async def _read_name(self, context: Context) -> None:
        """Refuse an unknown name, if the request can be read in time."""
        if self._reading:
            return
        self._reading = True
        try:
            data = await asyncio.wait_for(context.read(), self._read_seconds)
        except TimeoutError:
            return
        finally:
            self._reading = False
        if not isinstance(data, bytes):
            raise InvalidInput("The call has no message: send a HealthCheckRequest.")
        if len(data) > MAX_REQUEST_BYTES:
            raise NotFound("This server has no service of that name.")
        try:
            name = health_pb2.HealthCheckRequest.FromString(data).service
        except DecodeError:
            raise InvalidInput("The message is not a valid HealthCheckRequest.") from None
        if name not in self._names:
            raise NotFound("This server has no service of that name.")


def _encoded(status: int) -> bytes:
    return health_pb2.HealthCheckResponse(status=status).SerializeToString()
