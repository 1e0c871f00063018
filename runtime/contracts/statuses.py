"""Errors to gRPC's status codes: the one place that knows which is which."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc

from echovlm_edge.runtime.contracts.errors import (
    Busy,
    InvalidInput,
    NotFound,
    NotOffered,
    NotPossibleHere,
    Unauthenticated,
    Unavailable,
    UnusableNumbers,
    UserError,
)

RETRY_AFTER = "grpc-retry-pushback-ms"  # gRPC's own clients heed it where retries are configured
CODES = {
    InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    NotPossibleHere: grpc.StatusCode.FAILED_PRECONDITION,
    NotFound: grpc.StatusCode.NOT_FOUND,
    NotOffered: grpc.StatusCode.UNIMPLEMENTED,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    Busy: grpc.StatusCode.RESOURCE_EXHAUSTED,
    UnusableNumbers: grpc.StatusCode.INTERNAL,
}

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"  # a call's messages as bytes
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


@dataclass(frozen=True)
class CallStatus:
    """How a failed call is answered: the code, a sentence, and trailing metadata."""

    code: grpc.StatusCode
    sentence: str = field(repr=False)
    metadata: tuple[tuple[str, str], ...] = ()


def status_of(error: UserError) -> CallStatus:
    """The status that a client gets for an error that it or its operator can fix."""
    metadata = ((RETRY_AFTER, str(round(error.retry_seconds * 1000))),) if isinstance(error, Busy) else ()
    code = next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)
    return CallStatus(code, str(error), metadata)


async def abort(context: Context, status: CallStatus) -> None:
    """End a call with a status; raises what `grpc.aio` ends handlers with."""
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
