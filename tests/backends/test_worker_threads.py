"""Where ONNX Runtime's workers run: a processor each where a server may use all, anywhere where it may not; behind others."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from echovlm_edge.runtime.backends.onnxruntime import PARTS, OnnxRuntimeBackend
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.resources.thread_priority import COMPUTING

PROCESSORS = os.sched_getaffinity(0)


def threads() -> set[int]:
    """List the ids of this process's threads."""
    return {int(task.name) for task in Path("/proc/self/task").iterdir()}


def processors_of_workers(bundle: Path, count: int | None) -> list[set[int]]:
    """Where each thread may run that a backend of so many threads starts."""
    before = threads()
    backend = OnnxRuntimeBackend(Bundle(bundle), count)
    time.sleep(0.2)  # each goes there by itself
    workers = threads() - before
    found = [os.sched_getaffinity(worker) for worker in workers]
    del backend
    return found


@pytest.mark.skipif(len(PROCESSORS) < 2, reason="one processor has no worker")
def test_a_worker_has_a_processor_of_its_own_where_all_may_be_used(golden_bundle: Path) -> None:
    workers = [{processor} for processor in sorted(PROCESSORS)[1:]]
    assert sorted(processors_of_workers(golden_bundle, None), key=min) == sorted(workers * len(PARTS), key=min)


def test_fewer_threads_than_processors_or_more_run_anywhere(golden_bundle: Path) -> None:
    workers = processors_of_workers(golden_bundle, len(PROCESSORS) + 1)
    assert workers == [PROCESSORS] * len(PROCESSORS) * len(PARTS)


def test_what_computes_lets_others_go_first(golden_bundle: Path) -> None:
    before = threads()
    engine = ReportEngine.open(golden_bundle)
    time.sleep(0.2)
    nice = {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads() - before}
    engine.close()
    assert nice == {COMPUTING}
    assert os.getpriority(os.PRIO_PROCESS, 0) < COMPUTING  # and nobody else does
