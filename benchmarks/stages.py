"""Compare each stage of the medium bundle with the same model in eager PyTorch, alternating in one run (part of `make bench`).

python benchmarks/stages.py [--precision int4] [--json stages.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from benchmarks.make_checkpoint import config_like_published, make_checkpoint
from echovlm_edge.export.build_engines import BuildOptions, build
from echovlm_edge.export.parity.reference import TorchBackend
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.runtime.backends import Backend
from echovlm_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.contracts.command import SEVERAL
from echovlm_edge.runtime.contracts.request import Finished, Frame, GenerationRequest, Sampling, Stage
from echovlm_edge.runtime.contracts.tables import figures, names, new_table, print_table
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.imaging.image_file import decode_image
from echovlm_edge.runtime.imaging.preprocess import fit
from echovlm_edge.runtime.imaging.sample import sample_image
from echovlm_edge.runtime.resources.processors import usable_processors

FRAME = (640, 480)
NEW_TOKENS, CONTEXT = 32, 1024
PROMPT = "Could you generate a structured English ultrasound report from the images I've shared?"


@dataclass(frozen=True)
class StageTimes:
    """Return seconds by stage for one run; decode is per token."""

    vision: float
    projector: float
    prefill: float
    decode: float


class Case:
    """One frame and a prompt on a given backend, through the serving engine; nothing is cached between runs."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.engine = ReportEngine(bundle, backend, CONTEXT, EngineOptions(1, 0, 0, ignore_stop=True, drafting=False))
        resolution = self.engine.settings.resolution
        pixels = fit(_frame(), resolution._replace(max_pixels=FRAME[0] * FRAME[1]))
        sampling = Sampling(max_new_tokens=NEW_TOKENS)
        self.request = GenerationRequest(PROMPT, sampling=sampling, frames=(Frame(pixels, "frame", resolution),))

    def run(self) -> Finished:
        """Generate one report."""
        *_, last = self.engine.generate(self.request)
        assert isinstance(last, Finished)
        return last


def _times(finished: Finished) -> StageTimes:
    seconds = finished.seconds
    steps = [span.seconds for span in finished.spans if span.stage is Stage.DECODE]
    # The first token is chosen from prefill's logits, without a step.
    return StageTimes(seconds[Stage.VISION], seconds[Stage.PROJECTOR], seconds[Stage.PREFILL], median(steps[1:]))


def _frame() -> np.ndarray:
    return np.asarray(Image.fromarray(decode_image(sample_image())[0].pixels).resize(FRAME))


def _medians(runs: list[StageTimes]) -> StageTimes:
    return StageTimes(
        *(median(getattr(run, name) for run in runs) for name in ("vision", "projector", "prefill", "decode"))
    )


def main() -> int:
    """Run the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(description="Time each stage of a medium bundle compared with eager PyTorch.")
    parser.add_argument("--precision", **SEVERAL, help="default: int4 int8")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("build/bench"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    threads = usable_processors()
    torch.set_num_threads(threads)
    console = Console(stderr=True)
    checkpoint = options.folder / f"checkpoint-{options.width}x{options.layers}"
    if not (checkpoint / "config.json").is_file():
        make_checkpoint(checkpoint, config_like_published(options.width, options.layers))
    bundles = {}
    for precision in options.precision or ["int4", "int8"]:
        output = options.folder / f"bundle-{options.width}x{options.layers}-{precision}"
        build(BuildOptions(checkpoint, output, precision=precision, replace=True), console)
        bundles[precision] = Bundle(output)
    first = next(iter(bundles.values()))
    cases = {"PyTorch eager float32": Case(first, TorchBackend(Checkpoint(checkpoint)))}
    cases |= {f"bundle {name}": Case(bundle, OnnxRuntimeBackend(bundle, threads)) for name, bundle in bundles.items()}
    prompt_tokens = {case.run().prompt_tokens for case in cases.values()}.pop()
    runs: dict[str, list[StageTimes]] = {name: [] for name in cases}
    for _ in range(options.runs):
        for name, case in cases.items():
            runs[name].append(_times(case.run()))
    medians = {name: _medians(times) for name, times in runs.items()}
    _print(medians, prompt_tokens, threads, f"width {options.width}, {options.layers} layers", Console())
    errors = {
        name: {stage.stage: stage.relative_error for stage in bundle.manifest.parity}
        for name, bundle in bundles.items()
    }
    for name, stages in errors.items():
        print(f"{name}: relative error " + ", ".join(f"{stage} {error:.2e}" for stage, error in stages.items()))
    if options.json:
        report = {
            "machine": {"cpu": platform.processor() or platform.machine(), "threads": threads},
            "prompt_tokens": prompt_tokens,
            "stages": {name: asdict(times) for name, times in medians.items()},
            "relative_error": errors,
        }
        options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 0


def _print(medians: dict[str, StageTimes], prompt_tokens: int, threads: int, title: str, console: Console) -> None:
    title = f"{title}, one {FRAME[0]}x{FRAME[1]} frame, {prompt_tokens} prompt tokens, {threads} threads"
    table = new_table(title, names("stage"), *(figures(case.replace(" ", "\n")) for case in medians))
    reference = next(iter(medians.values()))
    for stage in ("vision", "projector", "prefill", "decode"):
        cells = []
        for times in medians.values():
            seconds = getattr(times, stage)
            ratio = getattr(reference, stage) / seconds
            cells.append(f"{seconds * 1e3:,.1f} ms" + ("" if times is reference else f"  ({ratio:.2f}x)"))
        table.add_row(f"{stage}, a token" if stage == "decode" else stage, *cells)
    table.add_row("decode, tokens/s", *(f"{1 / times.decode:.1f}" for times in medians.values()))
    print_table(console, table)


if __name__ == "__main__":
    sys.exit(main())
