"""Run the event loop for gRPC's servers in a separate thread; there is one per process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from functools import cache
from typing import Any, TypeVar

from echovlm_edge.runtime.observability.logs import log_uncaught_in_loop

Result = TypeVar("Result")


def run_on_loop(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine on the loop and wait for its result; must not be called from the loop itself."""
    return asyncio.run_coroutine_threadsafe(work, _loop()).result()


@cache
def _loop() -> asyncio.AbstractEventLoop:
    # One loop, because `grpc.aio` has one completion queue per process, which wakes the loops of all its servers.
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(log_uncaught_in_loop)
    threading.Thread(target=loop.run_forever, name="grpc", daemon=True).start()
    return loop
