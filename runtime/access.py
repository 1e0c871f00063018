"""The guard of every method, reflection included: nobody unknown gets further than health checks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import grpc
from grpc_health.v1 import health

from echovlm_edge.runtime.clients import Client
from echovlm_edge.runtime.errors import Unauthenticated

_log = logging.getLogger(__name__)


class Access(Protocol):
    """Knows clients."""

    def identify(self, context: grpc.ServicerContext) -> Client:
        """Who calls.

        Raises:
            Unauthenticated: nobody that is known.
        """
        ...


class Guard(grpc.ServerInterceptor):
    """Asks `access` before every method."""

    def __init__(self, access: Access) -> None:
        """`access` decides."""
        self._access = access

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The method, behind the check."""
        handler: Any = continuation(details)
        if handler is None or details.method.startswith(f"/{health.SERVICE_NAME}/"):
            return handler
        method = details.method
        kinds = {
            (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
            (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
            (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
            (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
        }
        kind, make = kinds[handler.request_streaming, handler.response_streaming]
        behaviour = getattr(handler, kind)

        def guarded(request: Any, context: grpc.ServicerContext) -> Any:
            try:
                self._access.identify(context)
            except Unauthenticated as error:
                refuse(method, context, error)
            return behaviour(request, context)

        return make(guarded, handler.request_deserializer, handler.response_serializer)


def refuse(method: str, context: grpc.ServicerContext, error: Unauthenticated) -> NoReturn:
    """End the call of somebody unknown with UNAUTHENTICATED; the log says from where and how it was tried, never with what."""
    _log.warning(
        "refused an unknown client",
        extra={"method": method.rpartition("/")[2], "peer": context.peer(), "tried": error.tried},
    )
    context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
