"""Limit the messages that are being received: how many at once, in total and per client, and for how long."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from echovlm_edge.runtime.contracts.errors import SHUTTING_DOWN, Busy, TooSlow, Unavailable

Message = TypeVar("Message")
Parsed = TypeVar("Parsed")
Read = Callable[[], Coroutine[Any, Any, Message]]


@dataclass(frozen=True)
class ReceivingLimits:
    """How many messages are received at once; each may take up to the largest message's memory.

    Attributes:
        total: of all clients, with those that are here and being parsed. When another one arrives, the oldest message of the client
            that has the most on their way is dropped.
        per_client: of one client; further ones wait and are not read until then.
        seconds: from a call's arrival until its message must have arrived.
    """

    total: int = 16
    per_client: int = 4
    seconds: float = 30.0


@dataclass(eq=False)
class _Receiving:
    client: str
    given_up: asyncio.Future[None]
    is_here: bool = False


class Receiver:
    """Reads calls' messages within the limits. All methods run on one event loop.

    A well-behaved client sends its message with the call. So the oldest message most likely belongs to a client that sends headers
    but never a message.
    """

    def __init__(self, limits: ReceivingLimits = ReceivingLimits()) -> None:
        """Start with no messages."""
        self._limits = limits
        self._receiving: list[_Receiving] = []  # oldest first
        self._turns: dict[str, asyncio.Semaphore] = {}
        self._waiting: Counter[str] = Counter()  # calls of a client that hold or await one of its turns
        self._closed = asyncio.Event()

    async def receive(self, read: Read[Message], client: str) -> Message:
        """Wait for a call's message.

        Args:
            read: reads the message; not called before the client's turn.
            client: the client whose call it is.

        Raises:
            TooSlow: the message did not arrive in time.
            Busy: the message was given up for newer ones.
            Unavailable: the server is shutting down.
        """
        return await self.receive_and(_itself, read, client)

    async def receive_and(
        self, parse: Callable[[Message], Coroutine[Any, Any, Parsed]], read: Read[Message], client: str
    ) -> Parsed:
        """Wait for a call's message, and parse it: it counts until then, and is not given up once it is here.

        Args:
            parse: reads the message.
            read: as in `receive`.
            client: as in `receive`.

        Raises:
            UserError: what `receive` raises.
        """
        one = _Receiving(client, asyncio.get_running_loop().create_future())
        reading = asyncio.ensure_future(self._read_in_turn(read, parse, one))
        if await self._comes(reading, self._limits.seconds, one.given_up):
            return reading.result()
        if one.given_up.done():
            raise Busy("Too many messages are being received, and this one took the longest: send it again.", 1.0)
        raise TooSlow(f"The call's message did not arrive within {self._limits.seconds:g} s: send it with the call.")

    async def receive_part(self, read: Read[Message], seconds: float) -> Message:
        """Wait for a part of a file. It does not count against the limits of messages: files have their own limits.

        Raises:
            TooSlow: the part did not arrive in time.
            Unavailable: the server is shutting down.
        """
        reading = asyncio.ensure_future(read())
        if await self._comes(reading, seconds):
            return reading.result()
        raise TooSlow("The upload is too slow, or has stopped: send it again.")

    async def _comes(self, reading: asyncio.Future[Message], seconds: float, *given_up: asyncio.Future[None]) -> bool:
        """Wait for a message; returns False, and stops reading it, if the time or something else ended the wait first."""
        closed = asyncio.ensure_future(self._closed.wait())
        try:
            waited_for: set[asyncio.Future[Any]] = {reading, closed, *given_up}
            await asyncio.wait(waited_for, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                return True
        finally:
            reading.cancel()
            closed.cancel()
        if self._closed.is_set():
            raise Unavailable(SHUTTING_DOWN)
        return False

    def close(self) -> None:
        """Give up all messages that are being received, and all later ones."""
        self._closed.set()

    @contextmanager
    def _turn_of(self, client: str) -> Iterator[asyncio.Semaphore]:
        turn = self._turns.setdefault(client, asyncio.Semaphore(self._limits.per_client))
        self._waiting[client] += 1
        try:
            yield turn
        finally:
            self._waiting[client] -= 1
            if not self._waiting[client]:
                del self._waiting[client], self._turns[client]

    async def _read_in_turn(
        self, read: Read[Message], parse: Callable[[Message], Coroutine[Any, Any, Parsed]], one: _Receiving
    ) -> Parsed:
        with self._turn_of(one.client) as turn:
            async with turn:
                self._receiving.append(one)
                self._make_room()
                try:
                    message = await read()
                    one.is_here = True
                    return await parse(message)
                finally:
                    self._receiving.remove(one)

    def _make_room(self) -> None:
        held = [one for one in self._receiving if not one.given_up.done()]
        if len(held) <= self._limits.total:
            return
        coming = [one for one in held if not one.is_here]  # the newest one at least
        most, _ = Counter(one.client for one in coming).most_common(1)[0]
        next(one for one in coming if one.client == most).given_up.set_result(None)


async def _itself(message: Message) -> Message:
    return message
