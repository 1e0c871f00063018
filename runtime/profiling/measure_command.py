"""`echovlm-profile`: measure where a report's time goes, in this process or on a server."""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from echovlm_edge.runtime.backends.opening import open_backend
from echovlm_edge.runtime.backends.operator_times import ProfiledBackend
from echovlm_edge.runtime.bundle.cost_model import CostModel
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.bundle.signers import add_signers, read_signers
from echovlm_edge.runtime.client.command_options import add_credentials, read_credentials
from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.contracts.command import SEVERAL, add_version
from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.contracts.image_path import read_image
from echovlm_edge.runtime.contracts.request import FrameSelection, ImageInput
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.profiling import table
from echovlm_edge.runtime.profiling.comparison.bounds import EXAMPLE, broken, of_one_profile, parse
from echovlm_edge.runtime.profiling.drawing.html_page import html_page
from echovlm_edge.runtime.profiling.measurement.ceilings import measured_ceilings
from echovlm_edge.runtime.profiling.measurement.chrome_trace import chrome_trace
from echovlm_edge.runtime.profiling.measurement.energy import open_meter
from echovlm_edge.runtime.profiling.measurement.machine import this_machine
from echovlm_edge.runtime.profiling.measurement.measurer import (
    InProcess,
    Measured,
    Measurement,
    Measurer,
    Remote,
    Target,
    check_images,
)
from echovlm_edge.runtime.profiling.measurement.memory import gpu_memory
from echovlm_edge.runtime.profiling.measurement.opening import measured_engine
from echovlm_edge.runtime.profiling.measurement.operators import joined
from echovlm_edge.runtime.profiling.measurement.summary import summarise
from echovlm_edge.runtime.profiling.outcome import ended
from echovlm_edge.runtime.profiling.schema import VERSION, Conditions, Interval, Operator, Profile, dump
from echovlm_edge.runtime.profiling.workloads import NAMED, W1, Workload, grid, size
from echovlm_edge.runtime.resources.atomic_file import write_whole

CONNECT_SECONDS = 10.0
OPERATOR_TOKENS = 8  # new tokens of the requests that measure operators
OPERATOR_REQUESTS = 3  # after one that warms up
LISTS = ("frames", "sizes", "prompt_tokens", "new_tokens", "clients")


def run(options: argparse.Namespace) -> int:
    """Measure, show and write the profile; returns the exit code."""
    bounds = of_one_profile([parse(text) for text in options.bounds])
    workloads = _workloads(options)
    if options.runs < 1 or options.warmups < 0:
        raise InvalidInput(f"--runs {options.runs} after {options.warmups} warm-ups measures nothing: give at least 1.")
    if bool(options.bundle) == bool(options.server):
        raise InvalidInput("Give --bundle to measure in this process, or --server to measure one that runs.")
    images = [read_image(path, FrameSelection(), True) for path in options.image]
    check_images(images, workloads)
    signers = read_signers(options)
    bundle = Bundle(options.bundle, signers=signers) if options.bundle else None
    with ExitStack() as stack:
        target = _target(options, bundle, max(workload.clients for workload in workloads), stack)
        measurements = _run(options, target, workloads, images)
        facts = target.facts()
    if options.server and _ended_early(measurements):
        print(
            "Some texts ended before their full length: start the server with --debug-ignore-stop, so that runs are comparable.",
            file=sys.stderr,
        )
    del target
    gc.collect()  # the engine, before the next one is loaded
    machine = this_machine()
    profile = Profile(
        "echovlm-profile",
        VERSION,
        datetime.now(UTC).isoformat(timespec="seconds"),
        machine,
        facts,
        Conditions(
            f"server {options.server}" if options.server else "in process",
            options.warmups,
            options.runs,
            options.threads,
            None if options.server else max(workload.clients for workload in workloads),
        ),
        tuple(
            summarise(measurement, CostModel.of(bundle.manifest) if bundle else None) for measurement in measurements
        ),
        None if options.server or options.quick else measured_ceilings(options.threads or machine.cores),
        _operators(bundle, options.threads, workloads[0]) if bundle and not options.quick else (),
    )
    console = Console()
    for part in table.tables(profile):
        console.print(part)
    if options.json:
        write_whole(options.json, json.dumps(dump(profile), indent=1).encode())
    if options.trace:
        write_whole(options.trace, json.dumps(chrome_trace(_intervals(measurements))).encode())
    if options.html:
        write_whole(options.html, html_page({options.json.stem if options.json else "this run": profile}).encode())
    return ended(broken(profile, bounds))


def _ended_early(measurements: Sequence[Measurement]) -> bool:
    return any(
        measured.run.generated_tokens < measurement.workload.new_tokens
        for measurement in measurements
        for measured in measurement.requests
    )


def _target(options: argparse.Namespace, bundle: Bundle | None, slots: int, stack: ExitStack) -> Target:
    if bundle is None:
        client = stack.enter_context(Connection(options.server, read_credentials(options)))
        client.wait_until_ready(CONNECT_SECONDS)
        return Remote(client, options.server)
    engine = measured_engine(bundle, slots, options.threads, options.drafting != "off")
    stack.callback(engine.close)
    return InProcess(engine)


def _run(
    options: argparse.Namespace, target: Target, workloads: Sequence[Workload], images: Sequence[ImageInput]
) -> list[Measurement]:
    total = sum(options.warmups + options.runs * workload.clients for workload in workloads)
    meter = open_meter() if not options.server else None
    try:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("Profiling", total=total)
            measurer = Measurer(
                target,
                options.runs,
                options.warmups,
                meter,
                gpu_memory() if not options.server else None,
                images,
                options.prompt,
                lambda: progress.advance(task),
            )
            return [measurer.measure(workload) for workload in workloads]
    finally:
        if meter:
            meter.close()


def _operators(bundle: Bundle, threads: int | None, workload: Workload) -> tuple[Operator, ...]:
    """Measure operators with separate requests, because an engine's profiler slows them down."""
    backend = open_backend(bundle, threads, profile=True)
    engine = ReportEngine(bundle, backend, options=EngineOptions(1, 0, 0, ignore_stop=True, drafting=False))
    try:
        measurer = Measurer(InProcess(engine), OPERATOR_REQUESTS, 1)
        measurer.measure(replace(workload, new_tokens=OPERATOR_TOKENS, clients=1, seen=False))
    finally:
        engine.close()
    if not isinstance(backend, ProfiledBackend):
        return ()
    times = backend.operator_times()
    return joined({part: runs[len(runs) // (OPERATOR_REQUESTS + 1) :] for part, runs in times.items()})


def _intervals(measurements: Sequence[Measurement]) -> dict[str, list[tuple[Interval, ...]]]:
    return {
        measurement.workload.name: [_spans(measured) for measured in measurement.requests]
        for measurement in measurements
    }


def _spans(measured: Measured) -> tuple[Interval, ...]:
    """Return a request's spans; a server's stages one after another, as it reports no more."""
    if measured.intervals:
        return measured.intervals
    start, found = 0.0, []
    for stage, seconds in measured.run.stages.items():
        found.append(Interval(stage, start, seconds))
        start += seconds
    return tuple(found)


def _workloads(options: argparse.Namespace) -> tuple[Workload, ...]:
    lists = {name: getattr(options, name) for name in LISTS}
    if options.workload and any(lists.values()):
        raise InvalidInput("Give --workload, or lists that make a grid, not both.")
    if not any(lists.values()) and not options.image:
        return tuple(NAMED[name] for name in options.workload or [W1.name])
    values = {name: lists[name] or [default] for name, default in zip(LISTS, (1, "640x480", 60, 64, 1), strict=True)}
    for name in ("prompt_tokens", "new_tokens", "clients"):
        if min(values[name]) < 1:
            raise InvalidInput(f"--{name.replace('_', '-')} {min(values[name])} is too few: give at least 1.")
    frames = [len(options.image)] if options.image else values["frames"]
    if min(frames) < 0:
        raise InvalidInput(f"--frames {min(frames)} is too few: give 0 or more.")
    sizes = [size(text) for text in values["sizes"]]
    return grid(frames, sizes, values["prompt_tokens"], values["new_tokens"], values["clients"])


def measure_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="echovlm-profile",
        description="Measure where a report's time goes, by stage, token and operator.",
        epilog="To compare and draw profiles, on any machine: echovlm-profile compare BEFORE.json AFTER.json; echovlm-profile "
        "page PROFILE.json... --html F. Exit codes: 0 every assertion holds; 1 one is broken; 2 a wrong option or file, or an "
        "assertion about what was not measured.",
    )
    add_version(made)
    add = made.add_argument
    add("--bundle", type=Path, metavar="DIR", help="folder that echovlm-build made: measured in this process")
    add("--server", metavar="HOST:PORT", help="measure this server instead, from here")
    add_signers(made)
    names = ", ".join(NAMED)
    add("--workload", **SEVERAL, choices=list(NAMED), metavar="NAME", help=f"of {names} (default {W1.name})")
    add("--frames", type=int, **SEVERAL, metavar="N", help="a grid instead: numbers of frames")
    add("--sizes", **SEVERAL, metavar="WxH", help="of the grid: sizes of frames (default 640x480)")
    add("--prompt-tokens", type=int, **SEVERAL, metavar="N", help="of the grid: tokens of text (default 60)")
    add("--new-tokens", type=int, **SEVERAL, metavar="N", help="of the grid: tokens to write (default 64)")
    add("--clients", type=int, **SEVERAL, metavar="N", help="of the grid: how many ask at a time (default 1)")
    add("--image", type=Path, **SEVERAL, default=[], metavar="FILE", help="your own images as one workload")
    add("--prompt", default="", metavar="TEXT", help="your own prompt")
    add("--runs", type=int, default=10, metavar="N", help="measured requests of each client (default 10)")
    add("--warmups", type=int, default=2, metavar="N", help="requests before them (default 2)")
    add("--threads", type=int, metavar="N", help="default: one per processor that may be used")
    add(
        *("--drafting",),
        choices=["auto", "off"],
        default="auto",
        help="guess tokens and check several in one step, as echovlm-serve does, but not from earlier runs (default auto)",
    )
    add("--quick", action="store_true", help="neither operators nor the machine's ceilings")
    add("--json", type=Path, metavar="F", help="write the profile, for compare and page")
    add("--html", type=Path, metavar="F", help="write one page that works without a network")
    add("--trace", type=Path, metavar="F", help="write a trace for Perfetto")
    add("--assert", dest="bounds", **SEVERAL, default=[], metavar="BOUND", help=f"exit code 1 if broken: {EXAMPLE}")
    add_credentials(made)
    return made
