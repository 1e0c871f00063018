"""Make handlers of gRPC methods that start before their message is read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc

from echovlm_edge.runtime.contracts.errors import UserError
from echovlm_edge.runtime.contracts.statuses import CallStatus, status_of

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"  # a call's messages as bytes
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


async def abort(context: Context, status: CallStatus) -> None:
    """End a call with a status; never returns, because `grpc.aio` raises an exception that ends the handler."""
    await context.abort(status.code, status.sentence, status.metadata)


def streaming_handler(answer: Callable[[Context], Awaitable[None]]) -> Handler:
    """Make a method's handler, of any of gRPC's four kinds, that begins before the request's message is read.

    On the wire a single message is a stream of one: `answer` reads (`context.read`) and writes (`context.write`) bytes. A UserError
    that it raises is the call's status.
    """

    async def handle(_: Any, context: Context) -> None:
        try:
            await answer(context)
        except UserError as error:
            await abort(context, status_of(error))

    handler: Handler = grpc.stream_stream_rpc_method_handler(handle)
    return handler
