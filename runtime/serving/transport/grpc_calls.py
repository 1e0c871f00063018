"""Handle gRPC calls to the report service: identify the caller from the metadata, read the message, then work in a thread.

A call takes no thread before its message has arrived and it was admitted. It releases its place when the work is done, not when
the client has read the last message: the event loop delivers what is left, for a limited time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import cast

import grpc
from google.protobuf.message import Message

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.contracts.errors import Busy, InvalidInput
from echovlm_edge.runtime.contracts.statuses import REQUEST_ID, CallStatus
from echovlm_edge.runtime.serving.access.identification import identified, told_apart, traceparent
from echovlm_edge.runtime.serving.call_record import CallRecord
from echovlm_edge.runtime.serving.service import NAME, Method
from echovlm_edge.runtime.serving.transport.handlers import Context, Handler, abort, streaming_handler
from echovlm_edge.runtime.serving.transport.reception import Reception
from echovlm_edge.runtime.serving.transport.threaded_answer import ThreadedAnswer
from echovlm_edge.runtime.serving.transport.wire_shape import check_shape


class ReportCalls(grpc.GenericRpcHandler):
    """Passes calls of `grpc.aio` to the service. All methods run on one event loop."""

    def __init__(self, reception: Reception) -> None:
        """Pass calls to the service of `reception`, within its limits."""
        self._service, self._access, self._threads = reception.service, reception.access, reception.threads
        self._observers, self._limits = reception.observers, reception.limits
        self._receiver, self._files, self._in_flight = reception.receiver, reception.files, reception.in_flight

    def service(self, details: grpc.HandlerCallDetails) -> Handler | None:
        """Return the handler of a method of this service, or None for another service's."""
        service, _, name = details.method.lstrip("/").partition("/")
        method = self._service.methods.get(name)
        if service != NAME or method is None:
            return None
        return streaming_handler(lambda context: self._call(method, context))

    async def _call(self, method: Method, context: Context) -> None:
        client = identified(self._access, method.name, context)
        who = told_apart(client, context)
        with self._in_flight.counted(who):
            call = CallRecord(method.name, client, self._observers, traceparent(context))
            status: CallStatus | None = None
            try:
                await context.send_initial_metadata(((REQUEST_ID, call.id),))
                status = await self._answer(method, call, who, context)
            except asyncio.CancelledError:
                call.gone.set()
                raise
            except (
                grpc.aio.InternalError
            ):  # nothing can be written: the client is gone, and gRPC reports that a moment later
                call.gone.set()
            except Exception as error:
                status = call.fail(error)
            finally:
                call.end()
        if status:
            await abort(context, status)

    async def _answer(self, method: Method, call: CallRecord, who: str, context: Context) -> CallStatus | None:
        """Answer a call; returns its status if it failed in its thread."""
        if method.in_parts:
            return await self._take_file(method, call, who, context)
        if method.needs_place:
            self._service.admission.check(call.client)
        request = _Request(await self._receiver.receive(lambda: _message(context), who))
        return await self._answer_from_thread(lambda: request.answers(method, call), call, context)

    async def _take_file(self, method: Method, call: CallRecord, who: str, context: Context) -> CallStatus | None:
        """Answer an upload. The file is forgotten unless its sender got its id."""
        with self._files.place(who):
            file = self._service.uploads.begin(call.client)
            delivered = False
            try:
                await self._files.receive(
                    lambda: _part(context), file, lambda data: cast(pb.UploadRequest, method.parse(data)).data
                )
                status = await self._answer_from_thread(lambda: _packed(method.answer(file, call)), call, context)
                delivered = status is None
                return status
            finally:
                if not delivered:
                    file.abandon()

    async def _answer_from_thread(
        self, make: Callable[[], Iterator[bytes]], call: CallRecord, context: Context
    ) -> CallStatus | None:
        answer = ThreadedAnswer[bytes]()
        self._threads.submit(answer.write, make, call)
        try:
            while isinstance(message := await answer.next(), bytes):
                await self._deliver(message, context)
            return message
        except BaseException:
            call.gone.set()  # the engine checks this before every token
            raise

    async def _deliver(self, message: bytes, context: Context) -> None:
        try:
            await asyncio.wait_for(context.write(message), self._limits.delivery_seconds)
        except TimeoutError:
            raise Busy(f"The answer was not read for {self._limits.delivery_seconds:g} s.", 1.0) from None


class _Request:
    """A request's bytes, which are released once they are parsed: they may be 64 MB."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def answers(self, method: Method, call: CallRecord) -> Iterator[bytes]:
        """Parse the request and answer it."""
        data, self._data = self._data, b""
        check_shape(data, method.request)
        request = method.parse(data)
        del data
        messages = method.answer(request, call)
        del request
        return _packed(messages)


async def _message(context: Context) -> bytes:
    if (data := await _part(context)) is None:
        raise InvalidInput("The call has no message: send one.")
    return data


async def _part(context: Context) -> bytes | None:
    """Read the call's next message; returns None after the last one."""
    data = await context.read()
    return data if isinstance(data, bytes) else None


def _packed(messages: Iterator[Message]) -> Iterator[bytes]:
    return (message.SerializeToString() for message in messages)
