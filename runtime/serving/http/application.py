"""The HTTP door's paths, each with what answers it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from echovlm_edge.runtime.observability.last_errors import LastErrors
from echovlm_edge.runtime.serving.http.chat.completions import ChatCompletions
from echovlm_edge.runtime.serving.http.console.page_files import page_files
from echovlm_edge.runtime.serving.http.console.session import Session
from echovlm_edge.runtime.serving.http.console.study_files import StudyFiles
from echovlm_edge.runtime.serving.http.exchange.door_options import HttpOptions
from echovlm_edge.runtime.serving.http.exchange.exchange import Answered, ClientDisconnect, Exchange
from echovlm_edge.runtime.serving.http.exchange.guards import Guards, not_found, wrong_method
from echovlm_edge.runtime.serving.http.exchange.http_calls import HttpCalls
from echovlm_edge.runtime.serving.http.reports.pictures import Pictures
from echovlm_edge.runtime.serving.http.reports.reports import Reports
from echovlm_edge.runtime.serving.http.state.health import Health
from echovlm_edge.runtime.serving.http.state.models import Models
from echovlm_edge.runtime.serving.http.state.service_state import ServiceView
from echovlm_edge.runtime.serving.transport.reception import Reception

Handle = Callable[[Exchange], Awaitable[None]]
Path = tuple[str, tuple[str, ...], Handle]  # with the methods that it takes

GET, POST, FILE = ("GET",), ("POST",), ("GET", "HEAD")


def application(
    reception: Reception, options: HttpOptions, is_serving: Callable[[], bool], errors: LastErrors
) -> ASGIApp:
    """Make the application.

    Args:
        reception: the service, and the limits that all doors share.
        options: its names, and whether it has the console.
        is_serving: whether a new call could be answered.
        errors: the last calls that failed.
    """
    calls, patience = HttpCalls(reception), reception.limits.delivery_seconds
    health, models = Health(is_serving, lambda: reception.service.state().info.refused_bundle), Models(calls)
    paths: list[Path] = [
        ("/v1/models", GET, models.list),
        ("/v1/models/{model:path}", GET, models.one),
        ("/v1/chat/completions", POST, ChatCompletions(calls).complete),
        ("/v1/reports", POST, Reports(calls).report),
        ("/v1/pictures", POST, Pictures(calls).show),
        ("/v1/service", GET, ServiceView(calls, is_serving, errors).show),
        ("/health", GET, health.ready),
        ("/health/live", GET, health.live),
    ]
    unknown = not_found([path for path, *_ in paths])
    if options.console:
        paths += _console(reception, calls, options)
    routes = [Route(path, _Endpoint(handle, patience, methods)) for path, methods, handle in paths]
    router = Router(
        routes, redirect_slashes=False, default=_Endpoint(lambda exchange: exchange.refuse(unknown), patience)
    )
    return Guards(router, options.names, patience)


def _console(reception: Reception, calls: HttpCalls, options: HttpOptions) -> Iterator[Path]:
    for file in page_files():
        yield file.path, FILE, file.send
    yield "/console/session", GET, Session(reception.access, [file.name for file in options.study]).show
    yield "/console/study/{number}", GET, StudyFiles(calls, options.study).send


class _Endpoint:
    """An ASGI application that handles the requests of one path, or of some methods of it."""

    def __init__(self, handle: Handle, delivery_seconds: float, methods: tuple[str, ...] = ()) -> None:
        self._handle, self._delivery_seconds, self._methods = handle, delivery_seconds, methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._delivery_seconds)
        try:
            if self._methods and scope["method"] not in self._methods:
                await exchange.refuse(wrong_method(self._methods))
            else:
                await self._handle(exchange)
        except (Answered, ClientDisconnect):  # nothing is left to do, or nobody is there
            pass
