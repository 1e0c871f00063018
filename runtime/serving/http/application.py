"""The HTTP door's paths, each with what answers it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from echovlm_edge.runtime.serving.http.chat_completions import ChatCompletions
from echovlm_edge.runtime.serving.http.exchange import ClientDisconnect, Exchange
from echovlm_edge.runtime.serving.http.guards import Guards, not_found, wrong_method
from echovlm_edge.runtime.serving.http.health import Health
from echovlm_edge.runtime.serving.http.http_calls import HttpCalls
from echovlm_edge.runtime.serving.http.models import Models
from echovlm_edge.runtime.serving.http.reports import Reports
from echovlm_edge.runtime.serving.transport.reception import Reception

Handle = Callable[[Exchange], Awaitable[None]]


def application(reception: Reception, names: Iterable[str], is_serving: Callable[[], bool]) -> ASGIApp:
    """Make the application.

    Args:
        reception: the service, and the limits that all doors share.
        names: under which clients may call without TLS.
        is_serving: whether a new call could be answered.
    """
    calls, patience = HttpCalls(reception), reception.limits.delivery_seconds
    health, models = Health(is_serving), Models(calls)
    paths = (
        ("/v1/models", "GET", models.list),
        ("/v1/models/{model:path}", "GET", models.one),
        ("/v1/chat/completions", "POST", ChatCompletions(calls).complete),
        ("/v1/reports", "POST", Reports(calls).report),
        ("/health", "GET", health.ready),
        ("/health/live", "GET", health.live),
    )
    routes = [Route(path, _Endpoint(handle, patience, method)) for path, method, handle in paths]
    unknown = not_found([path for path, *_ in paths])
    router = Router(
        routes, redirect_slashes=False, default=_Endpoint(lambda exchange: exchange.refuse(unknown), patience)
    )
    return Guards(router, names, patience)


class _Endpoint:
    """An ASGI application that handles the requests of one path, or of one method of it."""

    def __init__(self, handle: Handle, delivery_seconds: float, method: str = "") -> None:
        self._handle, self._delivery_seconds, self._method = handle, delivery_seconds, method

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._delivery_seconds)
        try:
            if self._method and scope["method"] != self._method:
                await exchange.refuse(wrong_method([self._method]))
            else:
                await self._handle(exchange)
        except ClientDisconnect:  # nobody is there
            pass
