"""Ask rows, several at a time, and yield each answer as it comes."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from echovlm_edge.runtime.contracts.errors import (
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    NotPossibleHere,
    UnusableNumbers,
    UserError,
)
from echovlm_edge.runtime.contracts.request import Sampling
from echovlm_edge.runtime.evaluation.asking.journal import Answer
from echovlm_edge.runtime.evaluation.asking.targets import Target
from echovlm_edge.runtime.evaluation.data.rows import Row

# What one row's question or pictures cause; any other error ends the run, which can be resumed.
OF_A_ROW = (InvalidInput, NotPossibleHere, NotFound, UnusableNumbers, DeadlineExceeded)


def ask_all(
    target: Target, rows: Sequence[Row], sampling: Sampling, at_once: int
) -> Generator[tuple[Row, Answer | UserError], None, None]:
    """Ask all rows, `at_once` at a time; yields each with its answer, or with the error that it alone caused.

    Raises:
        UserError: the server cannot be reached, is busy for too long, or does not know who asks.
    """
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="ask")
    try:
        asked = {pool.submit(target.ask, row, sampling): row for row in rows}
        for done in as_completed(asked):
            row = asked.pop(done)
            try:
                yield row, done.result()
            except OF_A_ROW as error:
                yield row, error
    finally:
        pool.shutdown(
            wait=False, cancel_futures=True
        )  # those that are asked end with the target's connection or engine
