"""Threads that compute for long, and whom they let go first."""

from __future__ import annotations

import os
import threading

COMPUTING = 10  # how nice: nine tenths of a processor go to whoever else wants it


def lower_thread_priority() -> None:
    """From now on let this thread, and those that it starts, compute when nobody else wants the processor.

    A step of the decoder takes all processors for milliseconds. Whoever has only a moment's work beside it, a refusal or the
    cart's own screen, would wait for it at every turn.
    """
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, max(COMPUTING, os.getpriority(os.PRIO_PROCESS, thread)))
