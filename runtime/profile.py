"""`echovlm-profile`: where the time of a report goes on this machine, by stage and by token."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from echovlm_edge.runtime.client import read_image
from echovlm_edge.runtime.command import run_command
from echovlm_edge.runtime.engine import EngineInfo, EngineOptions, ReportEngine
from echovlm_edge.runtime.errors import NotPossibleHere
from echovlm_edge.runtime.request import Finished, FrameSelection, GenerationRequest, Sampling
from echovlm_edge.runtime.sample import sample_image
from echovlm_edge.runtime.tasks import Language, Task, prompt_for

SCHEMA = 1  # of --json
PERCENTILES = (50, 90, 95, 99, 100)


@dataclass(frozen=True)
class Distribution:
    """Seconds over the runs (of `token`, over all tokens but each run's first)."""

    median: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Distribution:
        """The percentiles of one or more measurements."""
        return cls(*(float(value) for value in np.percentile(seconds, PERCENTILES)))


@dataclass(frozen=True)
class Profile:
    """What `--json` writes.

    Attributes:
        schema: its version.
        machine: what it ran on.
        bundle: what ran.
        runs: how many were measured, after one warm-up.
        prompt_tokens: of each run's prompt.
        generated_tokens: of each run's text.
        stages: seconds a run by stage, and of first_token, token and total.
        tokens_per_second: the median token's inverse.
    """

    schema: int
    machine: dict[str, Any]
    bundle: EngineInfo
    runs: int
    prompt_tokens: int
    generated_tokens: int
    stages: dict[str, Distribution]
    tokens_per_second: float | None


def measure(engine: ReportEngine, request: GenerationRequest, runs: int, console: Console) -> list[Finished]:
    """One warm-up, then `runs` measured generations."""
    results = []
    for _ in track(range(runs + 1), "Profiling", console=console):
        *_, last = engine.generate(request)
        assert isinstance(last, Finished)
        results.append(last)
    return results[1:]


def summarise(info: EngineInfo, results: Sequence[Finished]) -> Profile:
    """Distributions over the runs."""
    stages = {
        stage.value: Distribution.of([result.seconds.get(stage, 0.0) for result in results])
        for stage in results[0].seconds
    }
    tokens = [seconds for result in results for seconds in _token_seconds(result)[1:]]
    if tokens:
        stages["token"] = Distribution.of(tokens)
    stages["first_token"] = Distribution.of([result.first_token_seconds or 0.0 for result in results])
    stages["total"] = Distribution.of([_end(result) for result in results])
    return Profile(
        SCHEMA,
        {"cpu": _cpu_name(), "cores": len(os.sched_getaffinity(0)), "system": platform.platform()},
        info,
        len(results),
        results[0].prompt_tokens,
        len(results[0].token_ids),
        stages,
        1 / stages["token"].median if tokens else None,
    )


def chrome_trace(results: Sequence[Finished]) -> dict[str, Any]:
    """The runs as a trace that Perfetto and chrome://tracing open: a row per run, microseconds."""
    events = [
        {
            "name": span.stage.value,
            "ph": "X",
            "ts": span.start * 1e6,
            "dur": span.seconds * 1e6,
            "pid": 1,
            "tid": run,
        }
        for run, result in enumerate(results, 1)
        for span in result.spans
    ]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def html_page(profile: Profile, results: Sequence[Finished]) -> str:
    """One self-contained page: the stages as bars, every token's time, the table."""
    environment = Environment(loader=PackageLoader("echovlm_edge.runtime", "."), autoescape=True)
    longest = max(distribution.median for name, distribution in profile.stages.items() if name != "total")
    return environment.get_template("profile.html.jinja").render(
        profile=profile, tokens=_token_seconds(results[-1])[1:], longest=longest
    )


def _token_seconds(result: Finished) -> list[float]:
    return [span.seconds for span in result.spans if span.stage.value == "decode"]


def _end(result: Finished) -> float:
    return max(span.start + span.seconds for span in result.spans)


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _table(profile: Profile) -> Table:
    title = (
        f"{profile.bundle.model}, {profile.bundle.precision}, {profile.runs} runs on {profile.machine['cores']} cores"
    )
    table = Table(box=box.SIMPLE, title=title)
    for column in ("milliseconds", "median", "p90", "p95", "p99", "max", "share"):
        table.add_column(column, justify="left" if column == "milliseconds" else "right")
    total = profile.stages["total"].median
    for name, stage in profile.stages.items():
        share = "" if name in ("token", "first_token") else f"{stage.median / total:.0%}"
        values = (stage.median, stage.p90, stage.p95, stage.p99, stage.max)
        table.add_row(name.replace("_", " "), *(f"{value * 1e3:,.2f}" for value in values), share)
    rate = f", {profile.tokens_per_second:.1f} tokens/s" if profile.tokens_per_second else ""
    table.caption = f"{profile.prompt_tokens} prompt tokens, {profile.generated_tokens} generated{rate}"
    return table


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise NotPossibleHere(f"{path} cannot be written ({error.strerror}).") from None


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="echovlm-profile", description="Measure where a report's time goes, by stage."
    )
    add = parser.add_argument
    add("--bundle", type=Path, required=True, help="folder that echovlm-build made")
    add(
        "--image",
        type=Path,
        nargs="*",
        default=[],
        metavar="FILE",
        help="default: a real frame that ships with pydicom",
    )
    add("--prompt", default="", metavar="TEXT", help="default: the report's")
    add("--max-new-tokens", type=int, default=64, metavar="N", help="default 64")
    add("--runs", type=int, default=5, metavar="N", help="measured after one warm-up (default 5)")
    add("--threads", type=int, metavar="N", help="default: one per core")
    add("--json", type=Path, metavar="F", help="write the figures")
    add("--html", type=Path, metavar="F", help="write a page to look at")
    add("--trace", type=Path, metavar="F", help="write a trace for Perfetto")
    options = parser.parse_args(arguments)

    def command() -> int:
        if options.runs < 1:
            raise NotPossibleHere(f"--runs {options.runs} measures nothing: give at least 1.")
        images = tuple(read_image(path, FrameSelection(), True) for path in options.image) or (sample_image(),)
        prompt = prompt_for(Task.REPORT, options.prompt, len(images), Language.EN, None)
        # Every run does all of the work again.
        nothing_kept = EngineOptions(slots=1, prefix_bytes=0, image_bytes=0)
        engine = ReportEngine.open(options.bundle, threads=options.threads, options=nothing_kept)
        request = GenerationRequest(prompt, images, Sampling(max_new_tokens=options.max_new_tokens))
        results = measure(engine, request, options.runs, Console(stderr=True))
        profile = summarise(engine.info, results)
        Console().print(_table(profile))
        if options.json:
            _write(options.json, json.dumps(asdict(profile), indent=1))
        if options.trace:
            _write(options.trace, json.dumps(chrome_trace(results)))
        if options.html:
            _write(options.html, html_page(profile, results))
        return 0

    return run_command(command)
