"""Build, serve and measure a model of the published size on this machine (`make bench-full`).

python -m benchmarks.full [--family qwen2_5_vl] [--layers 2] [--folder build/full] [--json bench-full.json]

Every figure is taken from the commands that a user types, as child processes. Needs some 45 GB of disk at full size.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.limits import Limits, Machine
from benchmarks.make_checkpoint import PUBLISHED_CONFIGS, make_checkpoint, published_config
from benchmarks.served import script, serving
from echovlm_edge.export.build_engines import BuildOptions, build
from echovlm_edge.export.parity import parity
from echovlm_edge.export.parity.reference import TorchBackend
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from echovlm_edge.runtime.bundle.cost_model import CostModel
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.client.report import STAGE_OF_WIRE
from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.client.wire.requests import ReportRequest
from echovlm_edge.runtime.contracts.command import run_command
from echovlm_edge.runtime.contracts.request import Sampling
from echovlm_edge.runtime.contracts.stages import words as stage_words
from echovlm_edge.runtime.contracts.tables import figures, names, new_table, print_table, words
from echovlm_edge.runtime.imaging.preprocess import PreprocessSettings
from echovlm_edge.runtime.profiling.measurement.requests import frame
from echovlm_edge.runtime.profiling.workloads import SMALL, W1, W7, Workload
from echovlm_edge.runtime.prompting.prompt import PromptBuilder
from echovlm_edge.runtime.resources.processors import usable_processors

WORKLOADS = {workload.name: workload for workload in (W1, *SMALL[:1], W7)}  # the prompt is the report's own
BEFORE_THE_TEXT = ("decode_images", "preprocess", "vision", "projector", "prefill")
GREEDY_TOKENS, GREEDY_LAYERS = 100, 2
PRECISIONS = ("int4", "int8")


@dataclass(frozen=True)
class Built:
    """Figures of one run of echovlm-build."""

    seconds: float
    peak_rss_gb: float


@dataclass(frozen=True)
class StageCost:
    """A stage's seconds, and its operations a second as a share of the machine's int8 peak."""

    seconds: float
    share_of_int8_peak: float | None


@dataclass(frozen=True)
class Answer:
    """One workload's result from the server."""

    prompt_tokens: int
    image_tokens: int
    new_tokens: int
    ttft_seconds: float
    decode_tokens_per_second: float
    seconds: dict[str, float]


def run_build(checkpoint: Path, output: Path, precision: str) -> Built:
    """Build in a separate process."""
    started = time.perf_counter()
    process = subprocess.Popen(_build_command(checkpoint, output, precision))
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, high_water_gb(process.pid))
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"echovlm-build failed with exit code {process.returncode}")
    return Built(time.perf_counter() - started, peak)


def resumed_build_is_the_same(checkpoint: Path, output: Path, precision: str, expected: str) -> bool:
    """Kill a build when half of its weights are written, resume it, and compare the bundle's id."""
    partial = output.with_name(f".{output.name}.partial")
    process = subprocess.Popen(_build_command(checkpoint, output, precision), stderr=subprocess.DEVNULL)
    half = sum(file.bytes for file in Bundle(output.with_name("bundle")).manifest.all_files()) / 2
    while process.poll() is None and (
        not partial.exists() or sum(file.stat().st_blocks * 512 for file in partial.iterdir()) < half
    ):
        time.sleep(0.1)
    process.kill()
    process.wait()
    if output.exists():
        raise SystemExit("The build ended before it could be killed.")
    run_build(checkpoint, output, precision)
    return Bundle(output, verify=True).manifest.bundle_id == expected


def _build_command(checkpoint: Path, output: Path, precision: str) -> list[str]:
    options = ("--checkpoint", checkpoint, "--output", output, "--precision", precision, "--replace")
    return [script("echovlm-build"), *map(str, options)]


def ask(address: str, workload: Workload, new_tokens: int) -> Answer:
    """Request one report about a workload's pictures."""
    images = [frame(number, workload.width, workload.height) for number in range(workload.frames)]
    with Connection(address) as client:
        *_, last = client.generate(ReportRequest(images=images, sampling=Sampling(max_new_tokens=new_tokens)))
    result = last.result
    seconds = {STAGE_OF_WIRE[stage.stage].value: stage.seconds for stage in result.timings.stages}
    tokens = result.usage.generated_tokens
    return Answer(
        result.usage.prompt_tokens,
        result.usage.image_tokens,
        tokens,
        result.timings.first_token_seconds,
        (tokens - 1) / seconds["decode"],  # the first token comes from the prefill's logits
        seconds,
    )


def high_water_gb(pid: int) -> float:
    """Return the peak resident memory of a process; 0 once it has ended.

    Not `wait4`'s figure: a child counts its parent's until it executes its own program.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e9


def memory_gb(pid: int, kind: str = "Rss") -> float:
    """Return a process's resident memory: with shared pages (`Rss`), or only pages that no other process maps (`Private`)."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return (
        sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith((f"{kind}:", f"{kind}_")))
        * 1024
        / 1e9
    )


def stage_costs(answer: Answer, costs: CostModel, frames: int, machine: Machine) -> dict[str, StageCost]:
    """Return the time of each stage up to the first token."""
    operations = {
        "vision": costs.vision(answer.image_tokens, frames).operations,
        "projector": costs.projector(answer.image_tokens, frames).operations,
        "prefill": costs.prefill(answer.prompt_tokens, 0).operations,
    }
    return {
        stage: StageCost(
            seconds, operations[stage] / seconds / machine.int8_gops / 1e9 if stage in operations else None
        )
        for stage, seconds in answer.seconds.items()
        if stage in BEFORE_THE_TEXT
    }


def greedy_tokens_agree(folder: Path, family: str) -> dict[str, Any]:
    """Check whether 100 greedy tokens of a two-layer fp32 bundle are the PyTorch model's, and how far the logits differ.

    The PyTorch model gets the bundle's tokens as input: if its most likely next token equals the bundle's at every step, it would
    have generated the same text.
    """
    source, output = random_checkpoint(folder, GREEDY_LAYERS, family), folder / "bundle-fp32"
    build(BuildOptions(source, output, precision="fp32", replace=True), Console(stderr=True))
    bundle, checkpoint = Bundle(output), Checkpoint(source)
    settings = PreprocessSettings.from_config(checkpoint.read_json("preprocessor_config.json"))
    reference = TorchBackend(checkpoint, streamed=True)
    compared = parity.compare(
        reference,
        lambda: OnnxRuntimeBackend(bundle),
        PromptBuilder.from_bundle(bundle),
        bundle.manifest.model,
        parity.samples(settings)[:1],
        GREEDY_TOKENS,
    )
    stages = {stage.stage: stage for stage in compared}
    shutil.rmtree(output)
    agreement = stages["decode"].top1_agreement
    return {
        "tokens": GREEDY_TOKENS,
        "equal": agreement == 1 and stages["prefill"].top1_agreement == 1,
        "decode_agreement": agreement,
        "prefill_agreement": stages["prefill"].top1_agreement,
        "largest_logit_error": stages["decode"].max_abs_error,
    }


def random_checkpoint(folder: Path, layers: int, family: str) -> Path:
    """Return a random checkpoint of a family's published size, made where it is missing."""
    source = folder / (f"checkpoint-{layers}" if family == "echovlm" else f"checkpoint-{family}-{layers}")
    if not (source / "config.json").is_file():
        make_checkpoint(source, published_config(layers, family=family), dtype=torch.bfloat16, tokenizer=None)
    return source


def main() -> int:
    """Run the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(description="Build, serve and time the published model's size on this machine.")
    add = parser.add_argument
    add("--family", choices=PUBLISHED_CONFIGS, default="echovlm", help="of the model (default echovlm)")
    add("--layers", type=int, default=28, help="of the decoder (default 28: all)")
    add("--precision", choices=PRECISIONS, default="int4")
    add("--folder", type=Path, default=Path("build/full"), help="for checkpoints and bundles (default build/full)")
    add("--json", type=Path, default=Path("bench-full.json"))
    add("--workloads", nargs="*", action="extend", choices=WORKLOADS, help="default: all")
    add("--reuse", action="store_true", help="measure the bundle that an earlier run built")
    add("--no-resume", action="store_true", help="leave out killing a build and starting it again")
    add("--no-greedy", action="store_true", help="leave out the greedy tokens of a two-layer fp32 bundle")
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / "bundle"
    report: dict[str, Any] = {"family": options.family, "layers": options.layers, "precision": options.precision}
    started = time.perf_counter()
    source = random_checkpoint(folder, options.layers, options.family)
    report["checkpoint_seconds"] = time.perf_counter() - started
    if not options.reuse:
        built = run_build(source, output, options.precision)
        report |= {"build_seconds": built.seconds, "build_peak_rss_gb": built.peak_rss_gb}
    bundle = Bundle(output)
    report["bundle_gb"] = sum(file.stat().st_size for file in output.iterdir()) / 1e9
    report["parity"] = [asdict(stage) for stage in bundle.manifest.parity]
    if not options.no_resume:
        again = folder / "bundle-resumed"
        report["resumed_build_is_the_same"] = resumed_build_is_the_same(
            source, again, options.precision, bundle.manifest.bundle_id
        )
        shutil.rmtree(again)
    report |= measure_service(bundle, folder, list(WORKLOADS) if options.workloads is None else options.workloads)
    if not options.no_greedy:
        report["greedy"] = greedy_tokens_agree(folder, options.family)
    options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    print_report(report, Console())
    return 0


def measure_service(bundle: Bundle, folder: Path, workloads: list[str]) -> dict[str, Any]:
    """Measure start, memory, decode and time to first token of servers with one bundle."""
    Bundle(bundle.path, verify=True)  # reads every byte, so that the page cache is warm
    limits = Limits(usable_processors(), bundle.path / "decoder.data")
    # Random weights write what repeats itself: drafts would guess most of it.
    with serving(bundle.path, folder, "--drafting", "off") as served:
        idle = memory_gb(served.pid)
        limits.read(3)
        answers = {}
        for name in workloads:
            answers[name] = ask(served.address, WORKLOADS[name], WORKLOADS[name].new_tokens)
            limits.read(3)
        alone = memory_gb(served.pid)
        with serving(bundle.path, folder) as second:
            ask(second.address, W1, 4)
            added = memory_gb(second.pid, "Private")
    costs = CostModel.of(bundle.manifest)
    machine = limits.machine()
    assert costs, "a bundle of a published checkpoint holds its config"
    first = answers[workloads[0]]
    read = costs.decode(2, first.prompt_tokens + first.new_tokens // 2).read_bytes
    return {
        "machine": asdict(machine),
        "start_seconds": served.start_seconds,
        "idle_rss_gb": idle,
        "serve_rss_gb": alone,
        "second_server_gb": added,
        "decode_tokens_per_second": first.decode_tokens_per_second,
        "decode_gb_a_token": read / 1e9,
        "decode_share_of_bandwidth": first.decode_tokens_per_second * read / 1e9 / machine.read_gbps,
        "ttft_seconds": first.ttft_seconds,
        "ttft_seconds_by_workload": {name: answer.ttft_seconds for name, answer in answers.items()},
        "stages": {
            name: {stage: asdict(cost) for stage, cost in costs.items()}
            for name, costs in (
                (name, stage_costs(answer, costs, WORKLOADS[name].frames, machine)) for name, answer in answers.items()
            )
        },
        "answers": {name: asdict(answer) for name, answer in answers.items()},
    }


def print_report(report: dict[str, Any], console: Console) -> None:
    """Print two tables: the figures, and the stages of each workload."""
    machine = report["machine"]
    title = (
        f"{report['layers']} layers, {report['precision']}, {machine['cpu']}, {machine['threads']} threads: reads "
        f"{machine['read_gbps']:.1f} GB/s, int8 peak {machine['int8_gops']:.0f} GOP/s"
    )
    table = new_table(title, names("figure"), figures(""))
    for key, value in report.items():
        if isinstance(value, bool | int | str):
            table.add_row(key.replace("_", " "), str(value))
        elif isinstance(value, float):
            table.add_row(key.replace("_", " "), f"{value:,.2f}")
    for workload, seconds in report["ttft_seconds_by_workload"].items():
        table.add_row(f"ttft seconds, {workload}", f"{seconds:,.2f}")
    if "greedy" in report:
        table.add_row(f"{report['greedy']['tokens']} greedy tokens equal PyTorch's", str(report["greedy"]["equal"]))
    print_table(console, table)
    stages = new_table(
        "up to the first token", words("workload"), names("stage"), figures("seconds"), figures("share of\nint8 peak")
    )
    for workload, costs in report["stages"].items():
        for stage, cost in costs.items():
            share = cost["share_of_int8_peak"]
            stages.add_row(
                workload, stage_words(stage), f"{cost['seconds']:,.2f}", "" if share is None else f"{share:.0%}"
            )
    print_table(console, stages)


if __name__ == "__main__":
    sys.exit(run_command(main))
