"""End the process within a deadline even if a thread hangs, and without leaving child processes behind."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

LOG_SECONDS = 1.0  # for the last log line, as the log's reader may hang too

_log = logging.getLogger(__name__)


def end_process(seconds: float, *steps: Callable[[], object]) -> NoReturn:
    """Run the last steps and end the process with code 0; it ends after `seconds` even if a step still runs.

    The process does not end by returning from main: Python would wait for its threads and C++ for its own, and one that hangs
    in a decoder or on a GPU would keep the process for ever.
    """
    threading.Thread(target=_end_after, args=(seconds,), name="end", daemon=True).start()
    for step in steps:
        try:
            step()
        except Exception as error:
            _log.error("a shutdown step failed with %s", type(error).__name__)
    logging.shutdown()
    with suppress(OSError, ValueError):  # its reader is gone
        sys.stdout.flush()
    exit_now(0)


def exit_now(code: int) -> NoReturn:
    """Kill this process's children and end it, without waiting for anything."""
    for child in _children():
        with suppress(OSError):  # it is gone already
            os.kill(child, signal.SIGKILL)
    os._exit(code)


def _end_after(seconds: float) -> None:
    time.sleep(seconds)
    line = "shutdown took too long: the process exits without waiting for the rest"
    logging_ = threading.Thread(target=_log.warning, args=(line,), daemon=True)
    logging_.start()
    logging_.join(LOG_SECONDS)
    exit_now(0)


def _children() -> list[int]:
    """List this process's children; if the kernel does not list them, they end by themselves when their pipes close."""
    found: list[int] = []
    for thread in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # a thread that has just ended
            found += map(int, thread.read_text().split())
    return found
