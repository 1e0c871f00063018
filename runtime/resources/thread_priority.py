"""The priority of threads that compute for long."""

from __future__ import annotations

import os
import threading

COMPUTING = 10  # nice value: other threads on the same processor get nine tenths of it


def lower_thread_priority() -> None:
    """Lower the priority of this thread and of those that it starts.

    A decode step takes all processors for milliseconds. Work that takes only a moment, a refusal or the cart's own screen, would
    wait for it at every step.
    """
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, max(COMPUTING, os.getpriority(os.PRIO_PROCESS, thread)))
