"""gRPC's server reflection for known clients, so that `grpcurl` works without the proto file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

import grpc
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection, reflection_pb2

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.serving.access.identification import Access, identified, told_apart
from echovlm_edge.runtime.serving.transport.handlers import Context, Handler, streaming_handler
from echovlm_edge.runtime.serving.transport.receiving import Receiver

METHOD = "ServerReflectionInfo"


class Reflection(grpc.GenericRpcHandler):
    """The library's reflection, for identified callers and within the limits of received messages."""

    def __init__(self, names: Iterable[str], access: Access, receiver: Receiver) -> None:
        """Describe the services `names`."""
        self._servicer = reflection.aio.ReflectionServicer(names)
        self._access, self._receiver = access, receiver

    def service(self, details: grpc.HandlerCallDetails) -> Handler | None:
        """Return the handler of the one method, or None for another method."""
        if details.method != f"/{reflection.SERVICE_NAME}/{METHOD}":
            return None
        return streaming_handler(self._describe)

    async def _describe(self, context: Context) -> None:
        who = told_apart(identified(self._access, METHOD, context), context)
        async for answer in self._servicer.ServerReflectionInfo(self._requests(context, who), context):
            await context.write(answer.SerializeToString())

    async def _requests(self, context: Context, who: str) -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        while isinstance(data := await self._receiver.receive(context.read, who), bytes):
            try:
                yield reflection_pb2.ServerReflectionRequest.FromString(data)
            except DecodeError:
                raise InvalidInput("The message is not a valid ServerReflectionRequest.") from None
