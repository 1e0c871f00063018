"""End the engine's threads before the process ends, where nobody closed the engine.

Python ends a daemon thread where it next asks for the interpreter. In a call of ONNX Runtime that is a C++ function which lets
no exception pass, and the process aborts: `terminate called without an active exception`.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from typing import Protocol
from weakref import WeakKeyDictionary

SECONDS = 30.0  # for the current turns to end, of all threads together

_log = logging.getLogger(__name__)


class Closable(Protocol):
    """What has a thread that ends after its current turn."""

    def close(self) -> None:
        """Ask the thread to end; may be called again."""


_threads: WeakKeyDictionary[Closable, threading.Thread] = WeakKeyDictionary()  # a thread that runs keeps its owner


def close_at_exit(owner: Closable, thread: threading.Thread) -> None:
    """Close `owner` when the process ends, and wait for its daemon thread."""
    _threads[owner] = thread


@atexit.register
def _close_all() -> None:
    threads, until = dict(_threads), time.monotonic() + SECONDS
    for owner in threads:
        owner.close()
    for thread in threads.values():
        thread.join(max(0.0, until - time.monotonic()))
    if any(thread.is_alive() for thread in threads.values()):
        _log.warning("a turn did not end within %g s of the process's end", SECONDS)


os.register_at_fork(after_in_child=_threads.clear)  # a forked process has none of the threads
