"""Where a stage's time goes, by operator, and what of it is no operator: Python, waiting, copies between parts.

python -m benchmarks.operators --bundle build/random [--workload W1] [--kernels avx2] [--runs 5]

Operators are timed by ONNX Runtime's own profiler, in the same requests as the stages: both are a little longer than without it.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import median

from rich.console import Console

from benchmarks.chosen_kernels import add_kernels, use_kernels
from benchmarks.limits import installed_library
from echovlm_edge.plugins.dual_path_moe.native import NativeLibrary
from echovlm_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from echovlm_edge.runtime.backends.operator_times import NodeTime
from echovlm_edge.runtime.bundle.manifest import PREFILL_CHUNK, Bundle
from echovlm_edge.runtime.contracts.command import run_command
from echovlm_edge.runtime.contracts.request import Stage
from echovlm_edge.runtime.contracts.tables import figures, names, new_table, print_table
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.profiling.measurement.measurer import InProcess, Measured, Measurer
from echovlm_edge.runtime.profiling.workloads import NAMED, W1
from echovlm_edge.runtime.resources.processors import usable_processors

NEW_TOKENS = 8
REST = "no operator"
PEAKS = 5  # measurements of the int8 peak

Kinds = dict[str, float]  # seconds by kind of operator


def kinds(run: Iterable[NodeTime]) -> Kinds:
    """Add up a run's operators by kind."""
    found: Kinds = defaultdict(float)
    for node in run:
        found[node.kind] += node.seconds
    return found


def medians(requests: Sequence[Kinds], seconds: Sequence[float]) -> Kinds:
    """Return each kind's median over requests of one stage, the longest first, and the rest of the stage's `seconds`."""
    middle = {kind: median(request.get(kind, 0.0) for request in requests) for kind in {*requests[0]}}
    ordered = dict(sorted(middle.items(), key=lambda item: -item[1]))
    rest = median(whole - sum(request.values()) for whole, request in zip(seconds, requests, strict=True))
    return {**ordered, REST: rest}


def stages(
    runs: Mapping[str, Sequence[Sequence[NodeTime]]], measured: Sequence[Measured], frames: int
) -> dict[str, Kinds]:
    """Divide each stage's time by kind: the vision encoder, the projector and the prompt of each request, and one token.

    Args:
        runs: of each part since it was opened, those of the requests last.
        measured: the requests, all alike.
        frames: of each request.
    """
    tokens = [next((node.tokens for node in run if node.tokens), 1) for run in runs["decoder"]]
    steps = [run for run, count in zip(runs["decoder"], tokens, strict=True) if count == 1]
    chunks = -(-measured[0].run.prompt_tokens // PREFILL_CHUNK)
    parts = {
        Stage.VISION: (runs["vision_encoder"], frames),
        Stage.PROJECTOR: (runs["projector"], frames),
        Stage.PREFILL: ([run for run, count in zip(runs["decoder"], tokens, strict=True) if count > 1], chunks),
    }
    found = dict[str, Kinds]()
    for stage, (each, of_request) in parts.items():
        last = each[len(each) - of_request * len(measured) :]
        requests = [kinds(chain(*last[at : at + of_request])) for at in range(0, len(last), of_request)]
        found[stage.value] = medians(requests, [one.run.stages[stage.value] for one in measured])
    between = median(gap for one in measured for gap in one.run.gaps)
    found["a token"] = medians([kinds(run) for run in steps], [between] * len(steps))
    return found


def print_stages(found: Mapping[str, Kinds], title: str, console: Console) -> None:
    """Print a line for each kind of operator in each stage."""
    table = new_table(title, names("stage"), names("operator"), figures("ms"), figures("share"))
    for stage, parts in found.items():
        whole = sum(parts.values())
        table.add_row(stage, "", f"{whole * 1e3:,.1f}", "")
        for kind, seconds in parts.items():
            table.add_row("", kind, f"{seconds * 1e3:,.2f}", f"{seconds / whole:.1%}")
    print_table(console, table)


def main() -> int:
    """Run the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(description="Measure where the time of each stage goes, by operator.")
    add = parser.add_argument
    add("--bundle", type=Path, required=True, metavar="DIR", help="for cpu")
    add("--workload", default=W1.name, choices=[name for name, one in NAMED.items() if not one.seen])
    add("--runs", type=int, default=5, help="requests, after one more (default 5)")
    add("--threads", type=int, help="default: usable processors")
    add_kernels(parser)
    options = parser.parse_args()
    use_kernels(options.kernels)
    bundle = Bundle(options.bundle)
    backend = OnnxRuntimeBackend(bundle, options.threads, profile=True)
    engine = ReportEngine(bundle, backend, options=EngineOptions(1, 0, 0, ignore_stop=True, drafting=False))
    workload = NAMED[options.workload]
    measured = Measurer(InProcess(engine), options.runs, 1).measure(replace(workload, new_tokens=NEW_TOKENS)).requests
    engine.close()
    native = NativeLibrary(installed_library())
    peak = median(native.int8_peak(options.threads or usable_processors()) for _ in range(PEAKS))
    title = f"{workload.name}, {measured[0].run.prompt_tokens} tokens of prompt; {native.kernel}, {peak / 1e9:,.0f} GOP/s of int8 at most"
    print_stages(stages(backend.operator_times(), measured, workload.frames), title, Console())
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
