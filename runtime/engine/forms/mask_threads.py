"""The threads that compute masks: one for forms that are quick, one for those that were slow. Only the slow ones wait for each other."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from echovlm_edge.runtime.resources.thread_priority import lower_thread_priority

Result = TypeVar("Result")


class MaskThreads:
    """Runs one piece of work of each kind at a time, outside Python's lock."""

    def __init__(self) -> None:
        """Start no thread before there is work."""
        self._quick = ThreadPoolExecutor(1, thread_name_prefix="forms")
        self._slow = ThreadPoolExecutor(1, thread_name_prefix="slow forms", initializer=lower_thread_priority)

    def submit(self, slow: bool, work: Callable[[], Result]) -> Future[Result]:
        """Queue work of a form that was `slow` or not."""
        return (self._slow if slow else self._quick).submit(work)

    def close(self) -> None:
        """End the threads after what they do now."""
        self._quick.shutdown(wait=False, cancel_futures=True)
        self._slow.shutdown(wait=False, cancel_futures=True)
