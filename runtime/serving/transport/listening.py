"""Run the gRPC servers of one address: the newest one accepts connections, older ones drain."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence

import grpc

from echovlm_edge.runtime.contracts.errors import NotPossibleHere

DRAIN_SECONDS = 3600.0  # for the calls of a server that a newer one has replaced
MAX_DRAINING = 8  # servers; for one more, the oldest is cut
POLL_SECONDS = 0.05
DELIVERY_SECONDS = 1.0  # for the last answers, once no call works any more
CUT_SECONDS = 1.0  # for a cut server to end
# The grace that gRPC is given. Where its own grace ends while a second `stop` completes, it uses a server that is freed: so it never
# ends, and what outlasts the grace that is meant is cut from here.
NEVER = 10 * 365 * 86400.0

Options = Sequence[tuple[str, int]]


class Listener:
    """Serves handlers on one address. All methods run on one event loop.

    gRPC's own way to change certificates replaces them while another thread uses them in a handshake, which can crash the process.
    So each server keeps the credentials that it started with, and new credentials get a server of their own on the same port.
    """

    def __init__(self, host: str, port: int, handlers: Sequence[grpc.GenericRpcHandler], options: Options) -> None:
        """Prepare the address without listening yet; port 0 takes a free one."""
        self._host, self.port = host, port
        self._handlers, self._options = tuple(handlers), tuple(options)
        self._ending: dict[grpc.aio.Server, asyncio.Future[None]] = {}  # oldest first
        self._draining = set[asyncio.Future[None]]()  # held, because the loop does not
        self._changing = asyncio.Lock()
        self._stopping = False

    async def open(self, credentials: grpc.ServerCredentials | None) -> None:
        """Listen; without TLS if there are no credentials.

        Raises:
            NotPossibleHere: the address cannot be used.
        """
        try:
            # This bind has no SO_REUSEPORT, so that it fails if another server has the port; and gRPC does not say why it fails.
            with socket.create_server((self._host, self.port), family=_family(self._host)):
                pass
        except OSError as error:
            # create_server appends the address, which our sentence contains already.
            raise self._refused((error.strerror or str(error)).partition(" (while")[0]) from None
        self._server = await self._start(credentials)

    async def renew(self, credentials: grpc.ServerCredentials) -> None:
        """Use other credentials for new connections; earlier connections and their calls have an hour to end.

        Raises:
            NotPossibleHere: the credentials cannot be used, and the old ones stay.
        """
        async with self._changing:
            if self._stopping:
                return
            before, self._server = self._server, await self._start(credentials)
            draining = asyncio.ensure_future(self._drain(before))
            self._draining.add(draining)
            draining.add_done_callback(self._draining.discard)
            if len(self._ending) > MAX_DRAINING:
                await _cut([next(iter(self._ending))])

    async def stop(self, grace: float, at_work: Callable[[], bool]) -> None:
        """Close the address; calls may end within `grace` seconds, and once `at_work` is false the rest is cut off.

        gRPC alone would wait for idle connections too, and a dead client's would take the whole grace period.
        """
        async with self._changing:
            self._stopping = True
        now = asyncio.get_running_loop().time
        last = now() + grace
        servers = [self._server, *self._ending]
        ending = {self._end(server) for server in servers}
        while ending and at_work() and now() < last:
            _, ending = await asyncio.wait(ending, timeout=POLL_SECONDS)
        if ending:
            _, ending = await asyncio.wait(ending, timeout=max(0.0, min(DELIVERY_SECONDS, last - now())))
        if ending:
            await _cut(servers)

    def _end(self, server: grpc.aio.Server) -> asyncio.Future[None]:
        """Take no more connections and calls; done when those that there are have ended, or were cut."""
        if server not in self._ending:
            self._ending[server] = ending = asyncio.ensure_future(server.stop(NEVER))
            ending.add_done_callback(lambda _: self._ending.pop(server, None))
        return self._ending[server]

    async def _drain(self, server: grpc.aio.Server) -> None:
        _, ending = await asyncio.wait([self._end(server)], timeout=DRAIN_SECONDS)
        if ending:
            await _cut([server])

    async def _start(self, credentials: grpc.ServerCredentials | None) -> grpc.aio.Server:
        options = [*self._options, ("grpc.so_reuseport", 0 if credentials is None else 1)]
        server = grpc.aio.server(handlers=self._handlers, options=options)
        address = join(self._host, self.port)
        try:
            if credentials is None:
                self.port = server.add_insecure_port(address)
            else:
                self.port = server.add_secure_port(address, credentials)
        except RuntimeError:
            raise self._refused("the address cannot be used") from None
        await server.start()
        return server

    def _refused(self, reason: str) -> NotPossibleHere:
        return NotPossibleHere(
            f"Cannot listen on {join(self._host, self.port)} ({reason}): give another --listen HOST:PORT."
        )


async def _cut(servers: Sequence[grpc.aio.Server]) -> None:
    await asyncio.wait([asyncio.ensure_future(server.stop(None)) for server in servers], timeout=CUT_SECONDS)


def join(host: str, port: int) -> str:
    """Join host and port to an address, with an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
