"""The HTTP door: listens on an address, on gRPC's event loop, until the server stops."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable

from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.extras import install_hint
from echovlm_edge.runtime.serving.transport.limits import TransportLimits
from echovlm_edge.runtime.serving.transport.listening import CUT_SECONDS, DELIVERY_SECONDS, POLL_SECONDS, join

try:
    import python_multipart  # noqa: F401  # the application's forms need it
    import uvicorn
    from starlette.types import ASGIApp

    from echovlm_edge.runtime.serving.http.connections.connection import BoundedConnection
except ImportError as missing:
    raise NotPossibleHere(f"--http needs {missing.name}, which is not installed: {install_hint('http')}.") from None

BACKLOG = 128  # connections that are not accepted yet
MOST_HEAD = 16 << 10  # bytes of a request's line and headers


class HttpDoor:
    """Serves an application on one address. All methods run on one event loop.

    Attributes:
        port: that it listens on.
    """

    def __init__(self, host: str, port: int, application: ASGIApp, limits: TransportLimits) -> None:
        """Bind the address without answering yet; port 0 takes a free one.

        Raises:
            NotPossibleHere: the address cannot be used.
        """
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except (OSError, UnicodeError) as error:
            reason = (getattr(error, "strerror", None) or "it is no address").partition(" (while")[0]
            raise NotPossibleHere(
                f"Cannot listen on {join(host, port)} ({reason}): give another --http HOST:PORT."
            ) from None
        self.port = int(self._socket.getsockname()[1])
        self._limits = limits
        self._config = uvicorn.Config(
            application,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",  # its lines are about requests, of which there is a log already
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=round(limits.idle_seconds) or 1,
            h11_max_incomplete_event_size=MOST_HEAD,
        )
        self._stopping = False

    async def open(self, context: ssl.SSLContext | None) -> None:
        """Answer requests; without TLS if there is no `context`."""
        self._server = _Server(self._config, self._accept)
        self._context = context
        self._serving = asyncio.ensure_future(self._server.serve())
        while not self._server.started:
            if self._serving.done():
                self._serving.result()
            await asyncio.sleep(0)

    async def renew(self, context: ssl.SSLContext) -> None:
        """Use another context for new connections; earlier ones end after the request that they are at."""
        if self._stopping:
            return
        self._context = context
        before, self._server.servers = self._server.servers, [await self._accept()]
        for listening in before:
            listening.close()
        for connection in list(self._server.server_state.connections):
            connection.shutdown()

    async def stop(self, grace: float, at_work: Callable[[], bool]) -> None:
        """Answer until no call works or `grace` seconds are over, deliver what is left for a moment, and cut the rest."""
        self._stopping = True
        now = asyncio.get_running_loop().time
        last = now() + grace
        while at_work() and now() < last:
            await asyncio.sleep(POLL_SECONDS)
        self._config.timeout_graceful_shutdown = max(0.0, min(DELIVERY_SECONDS, last - now()))  # type: ignore[assignment]
        self._server.should_exit = True
        await asyncio.wait([self._serving], timeout=DELIVERY_SECONDS + CUT_SECONDS)
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()
        self._socket.close()

    async def _accept(self) -> asyncio.Server:
        """Accept connections with the present context, on a copy of the socket."""
        return await asyncio.get_running_loop().create_server(
            self._connection,
            sock=self._socket.dup(),
            backlog=BACKLOG,
            ssl=self._context,
            ssl_handshake_timeout=self._limits.handshake_seconds if self._context else None,
        )

    def _connection(self) -> BoundedConnection:
        state, bounds = self._server.server_state, (self._limits.connections, self._limits.handshake_seconds)
        return BoundedConnection(*bounds, config=self._config, server_state=state, app_state={})


class _Server(uvicorn.Server):
    """uvicorn's server, with its listening made by `accept`."""

    def __init__(self, config: uvicorn.Config, accept: Callable[[], Awaitable[asyncio.Server]]) -> None:
        super().__init__(config)
        self._accept = accept

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        self.servers = [await self._accept()]
        self.started = True
