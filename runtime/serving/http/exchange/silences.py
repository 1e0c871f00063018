"""Notice that nothing comes for a while, so that a stream can show that it is alive: proxies close what is silent for a minute."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar

ALIVE = b": waiting\n\n"  # a comment, which readers of server-sent events pass over
ALIVE_SECONDS = 15.0

Event = TypeVar("Event")


async def with_silences(events: AsyncIterator[Event], seconds: float) -> AsyncGenerator[Event | None]:
    """Yield the events, and None whenever none has come for `seconds`."""

    async def following() -> tuple[Event, ...]:
        try:
            return (await anext(events),)
        except StopAsyncIteration:
            return ()

    coming = asyncio.ensure_future(following())
    try:
        while True:
            done, _ = await asyncio.wait([coming], timeout=seconds)
            if not done:
                yield None
            elif event := coming.result():
                coming = asyncio.ensure_future(following())
                yield event[0]
            else:
                return
    finally:
        coming.cancel()
