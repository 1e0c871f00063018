"""Pass an answer from the thread that produces it to the event loop that sends it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from echovlm_edge.runtime.contracts.statuses import CallStatus
from echovlm_edge.runtime.serving.call_record import CallRecord

Message = TypeVar("Message")


class ThreadedAnswer(Generic[Message]):
    """The messages of one call's answer. It must be created on the event loop that takes them."""

    def __init__(self) -> None:
        """Start with no messages."""
        self._loop = asyncio.get_running_loop()
        self._messages: asyncio.Queue[Message | CallStatus | None] = asyncio.Queue()

    async def next(self) -> Message | CallStatus | None:
        """Wait for the next message; at the end returns None, or a status if the call failed."""
        return await self._messages.get()

    def write(self, make: Callable[[], Iterable[Message]], call: CallRecord) -> None:
        """Make the answer and hand over its messages; runs in a thread."""
        last: CallStatus | None = None
        try:
            for message in make():
                self._put(message)
        except Exception as error:
            last = call.fail(error)
        self._put(last)

    def _put(self, message: Message | CallStatus | None) -> None:
        self._loop.call_soon_threadsafe(self._messages.put_nowait, message)
