"""Measure the overhead of profiling, and compare its figures with an independent clock; alternating in one run.

python -m benchmarks.profiling_checks [--bundle bundles/demo] [--runs 30] [--json F]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc

from benchmarks.served import serving
from echovlm.v1 import report_pb2 as pb
from echovlm.v1 import report_pb2_grpc
from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.contracts.command import run_command
from echovlm_edge.runtime.engine.clock import Clock, Untimed
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.profiling.distributions import changes
from echovlm_edge.runtime.profiling.measurement.energy import open_meter
from echovlm_edge.runtime.profiling.measurement.measurer import InProcess, Remote
from echovlm_edge.runtime.profiling.measurement.memory import PeakMemory
from echovlm_edge.runtime.profiling.measurement.requests import frame
from echovlm_edge.runtime.profiling.workloads import W1

PROMPT = "Describe the image."


@dataclass(frozen=True)
class Check:
    """One figure measured in two ways: geometric means in seconds, the change from the first to the second, and its 95 % interval."""

    what: str
    first: float
    second: float
    change: float
    low: float
    high: float
    runs: int


def measured(what: str, runs: int, ways: tuple[Callable[[], float], Callable[[], float]], warmups: int = 3) -> Check:
    """Measure both ways alternately, in a random order within each pair."""
    generator = random.Random(0)
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(-warmups, runs):
        order = [0, 1]
        generator.shuffle(order)
        for way in order:
            taken = ways[way]()
            if turn >= 0:
                seconds[way].append(taken)
    # Compare the two ways pair by pair: other load on the machine slows both of a pair.
    ratios = [after / before for before, after in zip(*seconds, strict=True)]
    change = changes({what: [1.0] * runs}, {what: ratios})[what]
    first, second = (_mean(values) for values in seconds)
    return Check(what, first, second, change.ratio, change.low, change.high, runs)


def overhead(bundle: Path, runs: int) -> Check:
    """Time the same request without spans and without reading the memory or the meter, and with all of them."""
    engine = ReportEngine.open(bundle, options=EngineOptions(1, 0, 0, ignore_stop=True, drafting=False))
    target, numbers = InProcess(engine), iter(range(1, 1 << 20))

    def ask() -> float:
        picture = frame(next(numbers), W1.width, W1.height)
        started = time.perf_counter()
        target.ask(PROMPT, [picture], W1.new_tokens)
        return time.perf_counter() - started

    def off() -> float:
        engine.new_clock = Untimed
        return ask()

    def on() -> float:
        engine.new_clock = Clock
        meter = open_meter()
        try:
            with PeakMemory():
                return ask()
        finally:
            if meter:
                meter.close()

    try:
        return measured("W1 without and with profiling", runs, (off, on))
    finally:
        engine.close()


def outside_clock(address: str, runs: int) -> list[Check]:
    """Compare a plain gRPC client's time with the profile's, and the server's own timings with the profile's."""
    numbers = iter(range(1, 1 << 20))
    own: list[float] = []
    with grpc.insecure_channel(address) as channel, Connection(address) as client:
        stub, target = report_pb2_grpc.ReportServiceStub(channel), Remote(client, address)

        def plain() -> float:
            picture = frame(next(numbers), W1.width, W1.height)
            sampling = pb.Sampling(max_new_tokens=W1.new_tokens, temperature=0.0)
            request = pb.GenerateReportRequest(
                images=[pb.Image(data=picture.open().read())],
                prompt=PROMPT,
                options=pb.GenerationOptions(sampling=sampling),
            )
            started = time.monotonic()
            for event in stub.GenerateReport(request):
                last = event
            taken = time.monotonic() - started
            own.append(last.result.timings.total_seconds / taken)
            return taken

        def profiled() -> float:
            return target.ask(PROMPT, [frame(next(numbers), W1.width, W1.height)], W1.new_tokens).run.seconds

        check = measured("a plain gRPC client's clock, and the profile's", runs, (plain, profiled))
    share = own[-runs:]
    inside = Check(
        "a client's clock, and the server's own",
        1.0,
        _mean(share),
        _mean(share) - 1,
        min(share) - 1,
        max(share) - 1,
        runs,
    )
    return [check, inside]


def _mean(values: list[float]) -> float:
    product = 1.0
    for value in values:
        product *= value ** (1 / len(values))
    return product


def main() -> int:
    """Run the checks; returns the exit code."""
    parser = argparse.ArgumentParser(description="What profiling costs, and whether an outside clock agrees with it.")
    parser.add_argument("--bundle", type=Path, default=Path("bundles/demo"))
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    checks = [overhead(options.bundle, options.runs)]
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(options.bundle, Path(folder), "--debug-ignore-stop") as served,
    ):
        checks += outside_clock(served.address, options.runs)
    for check in checks:
        print(f"{check.what}: {check.change:+.2%} ({check.low:+.2%} to {check.high:+.2%}), {check.runs} runs each")
    if options.json:
        options.json.write_text(json.dumps([asdict(check) for check in checks], indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
