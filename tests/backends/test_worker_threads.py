"""Where ONNX Runtime's workers run: a processor each where a server may use all, anywhere where it may not; behind others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from echovlm_edge.runtime.backends.onnxruntime import PARTS, OnnxRuntimeBackend
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.resources.thread_priority import COMPUTING
from tests.support.waiting import wait_for

PROCESSORS = os.sched_getaffinity(0)


def threads() -> set[int]:
    """List the ids of this process's threads."""
    return {int(task.name) for task in Path("/proc/self/task").iterdir()}


def wait_for_workers(bundle: Path, count: int | None, expected: list[set[int]]) -> None:
    """Wait until the threads that a backend of so many threads starts may run there: each goes there by itself."""
    before = threads()
    backend = OnnxRuntimeBackend(Bundle(bundle), count)
    wait_for(
        lambda: sorted(map(sorted, map(os.sched_getaffinity, threads() - before))) == sorted(map(sorted, expected))
    )
    del backend


@pytest.mark.skipif(len(PROCESSORS) < 2, reason="one processor has no worker")
def test_a_worker_has_a_processor_of_its_own_where_all_may_be_used(golden_bundle: Path) -> None:
    workers = [{processor} for processor in sorted(PROCESSORS)[1:]]
    wait_for_workers(golden_bundle, None, workers * len(PARTS))


def test_fewer_threads_than_processors_or_more_run_anywhere(golden_bundle: Path) -> None:
    wait_for_workers(golden_bundle, len(PROCESSORS) + 1, [PROCESSORS] * len(PROCESSORS) * len(PARTS))


def test_what_computes_lets_others_go_first(golden_bundle: Path) -> None:
    before = threads()
    engine = ReportEngine.open(golden_bundle)
    wait_for(lambda: {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads() - before} == {COMPUTING})
    engine.close()
    assert os.getpriority(os.PRIO_PROCESS, 0) < COMPUTING  # and nobody else does
