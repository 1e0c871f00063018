"""Compute in threads, each of which runs PyTorch on one core: results do not depend on how many there are."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from echovlm_edge.runtime.resources.processors import usable_processors

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """A pool of threads. PyTorch's own threads would split sums by their number, and so change their last bits."""

    def __init__(self, threads: int) -> None:
        """Use so many threads."""
        self._pool, self._threads = ThreadPoolExecutor(threads), threads

    def in_order(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield the result for each item, in their order; at most one item per thread is ahead of what was yielded."""
        pending: deque[Future[Result]] = deque()
        for item in items:
            if len(pending) == self._threads:
                yield pending.popleft().result()
            pending.append(self._pool.submit(function, item))
        while pending:
            yield pending.popleft().result()

    def each(self, function: Callable[[Item], None], items: Iterable[Item]) -> None:
        """Call the function for every item, and wait for all of them."""
        for _ in self.in_order(function, items):
            pass

    def close(self) -> None:
        """Wait for the threads and end them."""
        self._pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def workers(threads: int | None = None) -> Iterator[Workers]:
    """Make the pool, by default with a thread per usable processor; meanwhile PyTorch uses one core per call, without gradients."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = Workers(threads or usable_processors())
    try:
        with torch.no_grad():
            yield pool
    finally:
        pool.close()
        torch.set_num_threads(before)
