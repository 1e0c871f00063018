"""Make calls of HTTP requests: identify the caller from the headers, read the body, then work in a thread, as gRPC's calls do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TypeVar

from google.protobuf.message import Message

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.contracts.errors import UserError
from echovlm_edge.runtime.contracts.statuses import CallStatus, status_of
from echovlm_edge.runtime.serving.access.clients import Client
from echovlm_edge.runtime.serving.access.identification import identified, told_apart, traceparent
from echovlm_edge.runtime.serving.call_record import CallRecord
from echovlm_edge.runtime.serving.http.exchange.door_options import PARSED_AT_ONCE
from echovlm_edge.runtime.serving.http.exchange.exchange import Answered, ClientDisconnect, Exchange
from echovlm_edge.runtime.serving.http.exchange.refusals import refusal_of
from echovlm_edge.runtime.serving.transport.reception import Reception
from echovlm_edge.runtime.serving.transport.threaded_answer import ThreadedAnswer

DOOR = "http"
# From these stages on a request is known to be right, so that a stream can begin.
ACCEPTED = frozenset({pb.STAGE_VISION, pb.STAGE_QUEUE, pb.STAGE_PREFILL, pb.STAGE_DECODE})

Result = TypeVar("Result")
Answer = TypeVar("Answer", bound=Message)


class CallFailed(Exception):
    """A call failed in its thread, which has recorded it; `status` is what its client gets."""

    def __init__(self, status: CallStatus) -> None:
        super().__init__()
        self.status = status


def _release(parsing: asyncio.Semaphore, loop: asyncio.AbstractEventLoop, _: object) -> None:
    """Let the next body be parsed once the thread has ended, which may be after its client has left."""
    with suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(parsing.release)


class HttpCalls:
    """Calls of the service by HTTP. All methods run on one event loop."""

    def __init__(self, reception: Reception) -> None:
        """Call the service of `reception`, within its limits."""
        self._reception = reception
        self.service = reception.service
        self.receiver, self.files = reception.receiver, reception.files
        self._parsing = asyncio.Semaphore(PARSED_AT_ONCE)

    @asynccontextmanager
    async def call(self, method: str, exchange: Exchange) -> AsyncIterator[CallRecord]:
        """Record a call of `method` while the context lasts; what it raises is answered."""
        try:
            client = identified(self._reception.access, method, exchange)
            with self._reception.in_flight.counted(self.who(client, exchange)):
                async with self._recorded(self.record(method, client, exchange), exchange) as call:
                    yield call
        except UserError as error:  # before there was a call
            await exchange.refuse(refusal_of(status_of(error), error))
            raise Answered from None

    @asynccontextmanager
    async def unrecorded(self, method: str, exchange: Exchange) -> AsyncIterator[Client]:
        """Identify the caller of what is no call for the log and the metrics; what the context raises is answered."""
        try:
            client = identified(self._reception.access, method, exchange)
            with self._reception.in_flight.counted(self.who(client, exchange)):
                yield client
        except UserError as error:
            await exchange.refuse(refusal_of(status_of(error), error))
            raise Answered from None

    def record(self, method: str, client: Client, exchange: Exchange) -> CallRecord:
        """Begin the record of a call."""
        return CallRecord(method, client, self._reception.observers, traceparent(exchange), DOOR)

    def who(self, client: Client, exchange: Exchange) -> str:
        """Name the client or connection whose limits a call counts against."""
        return told_apart(client, exchange)

    async def request(self, exchange: Exchange, client: Client, parse: Callable[[bytearray], Result]) -> Result:
        """Read and parse the body of a call that would be admitted, within the limits of gRPC's messages.

        Raises:
            UserError: it is too long, too slow or wrong, or there is no room for the call.
        """

        async def read() -> bytearray:
            return await exchange.body(self.service.limits.message_bytes)

        async def parse_in_turn(body: bytearray) -> Result:
            await self._parsing.acquire()
            parsed = self._reception.threads.submit(parse, body)
            parsed.add_done_callback(partial(_release, self._parsing, asyncio.get_running_loop()))
            return await asyncio.wrap_future(parsed)

        self.service.admission.check(client)
        return await self.receiver.receive_and(parse_in_turn, read, self.who(client, exchange))

    async def in_thread(self, work: Callable[[], Result]) -> Result:
        """Run work that takes a while."""
        return await asyncio.get_running_loop().run_in_executor(self._reception.threads, work)

    async def messages(self, make: Callable[[], Iterator[Answer]], call: CallRecord) -> AsyncIterator[Answer]:
        """Run a method of the service in a thread, and yield its messages.

        Raises:
            CallFailed: it failed.
        """
        answer = ThreadedAnswer[Answer]()
        self._reception.threads.submit(answer.write, make, call)
        try:
            while not isinstance(message := await answer.next(), CallStatus | None):
                yield message
        except BaseException:
            call.gone.set()  # the engine checks this before every token
            raise
        if message:
            raise CallFailed(message)

    @asynccontextmanager
    async def _recorded(self, call: CallRecord, exchange: Exchange) -> AsyncIterator[CallRecord]:
        exchange.request_id = call.id
        try:
            yield call
        except (ClientDisconnect, asyncio.CancelledError) as left:
            call.gone.set()
            if isinstance(left, asyncio.CancelledError):
                raise
        except CallFailed as failed:
            await exchange.refuse(refusal_of(failed.status))
        except Exception as error:
            await exchange.refuse(refusal_of(call.fail(error), error))
        finally:
            call.end()
