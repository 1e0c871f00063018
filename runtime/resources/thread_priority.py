"""Lower the priority of compute threads."""

from __future__ import annotations

import os
import threading

COMPUTING = 10  # nice value: other threads on the same processor get nine tenths of it


def lower_thread_priority() -> None:
    """Lower the priority of this thread and of those that it starts.

    A decode step uses all processors for milliseconds. Without this, short work such as refusing a call or drawing the cart's screen
    would wait for every step.
    """
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, max(COMPUTING, os.getpriority(os.PRIO_PROCESS, thread)))
