"""Write the runs as a trace that Perfetto and chrome://tracing open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from echovlm_edge.runtime.profiling.schema import Interval

OWN_THREAD = ("prompt", "detokenize", "deliver", "wait", "queue", "decode_images", "network")


def chrome_trace(runs: Mapping[str, Sequence[Sequence[Interval]]]) -> dict[str, Any]:
    """Make complete events of each workload's intervals, in microseconds: a process for each workload, two rows for each run,
    one of what its own thread does and one of what the model computes.
    """
    events: list[dict[str, Any]] = []
    for process, (workload, requests) in enumerate(runs.items(), 1):
        events.append({"name": "process_name", "ph": "M", "pid": process, "args": {"name": workload}})
        for number, intervals in enumerate(requests, 1):
            for row, name in ((2 * number, f"run {number}"), (2 * number + 1, f"run {number}, the model")):
                events.append({"name": "thread_name", "ph": "M", "pid": process, "tid": row, "args": {"name": name}})
            events += [
                {
                    "name": interval.stage,
                    "ph": "X",
                    "ts": interval.start * 1e6,
                    "dur": interval.seconds * 1e6,
                    "pid": process,
                    "tid": 2 * number + (interval.stage not in OWN_THREAD),
                }
                for interval in intervals
            ]
    return {"traceEvents": events, "displayTimeUnit": "ms"}
