"""`make bench`: each stage of the medium bundle beside the same model in eager PyTorch, turn by turn in one run.

python benchmarks/stages.py [--precision int4] [--json stages.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.make_checkpoint import config_like_published, make_checkpoint
from echovlm_edge.export.build_engines import BuildOptions, build
from echovlm_edge.export.checkpoint import Checkpoint
from echovlm_edge.export.reference import TorchBackend
from echovlm_edge.runtime.backends import Backend, Floats
from echovlm_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from echovlm_edge.runtime.bundle import Bundle
from echovlm_edge.runtime.command import SEVERAL
from echovlm_edge.runtime.generate import Model, decode, prefill, prompt_embeddings
from echovlm_edge.runtime.imaging.image_file import decode_image
from echovlm_edge.runtime.imaging.preprocess import PreprocessSettings, patchify
from echovlm_edge.runtime.processors import usable_processors
from echovlm_edge.runtime.prompt import PromptBuilder
from echovlm_edge.runtime.request import Sampling
from echovlm_edge.runtime.rotary import MultimodalRotary, vision_angles
from echovlm_edge.runtime.sample import sample_image

FRAME = (640, 480)
NEW_TOKENS = 32
PROMPT = "Could you generate a structured English ultrasound report from the images I've shared?"


@dataclass(frozen=True)
class StageTimes:
    """Seconds by stage for one run; decode is per token."""

    vision: float
    projector: float
    prefill: float
    decode: float


class Case:
    """One frame and a prompt on a given backend."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        spec = bundle.manifest.model
        settings = PreprocessSettings.from_config({**bundle.manifest.preprocess, "max_pixels": FRAME[0] * FRAME[1]})
        self.patches = patchify(_frame(), settings)
        self.angles = vision_angles(self.patches.grid, spec.merge_size, spec.vision_head_dim)
        self.prompt = PromptBuilder.from_bundle(bundle).build(PROMPT, [self.patches.grid])
        rotary = MultimodalRotary(spec.mrope_section, spec.rope_theta)
        self.model = Model(backend, rotary, spec.vocab_size, frozenset())
        self.cache = backend.new_cache(len(self.prompt.token_ids) + NEW_TOKENS)

    def run(self) -> StageTimes:
        """Every stage once."""
        backend = self.model.backend
        features, vision = _timed(lambda: backend.encode(self.patches.values, self.angles))
        images, projector = _timed(lambda: backend.project(features))
        embeddings = prompt_embeddings(backend, self.prompt, [images])
        logits, filled = _timed(lambda: prefill(self.model, self.prompt, embeddings, self.cache).copy())
        sampling = Sampling(max_new_tokens=NEW_TOKENS)
        steps = list(decode(self.model, self.prompt, logits, self.cache, sampling))[1:]
        return StageTimes(vision, projector, filled, median(step.seconds for step in steps))


def _timed(work: Callable[[], Floats]) -> tuple[Floats, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def _frame() -> np.ndarray:
    return np.asarray(Image.fromarray(decode_image(sample_image())[0].pixels).resize(FRAME))


def _medians(runs: list[StageTimes]) -> StageTimes:
    return StageTimes(
        *(median(getattr(run, name) for run in runs) for name in ("vision", "projector", "prefill", "decode"))
    )


def main() -> int:
    """Run the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(description="Time each stage of a medium bundle beside eager PyTorch.")
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
        build(BuildOptions(checkpoint, output, precision=precision), console)
        bundles[precision] = Bundle(output)
    first = next(iter(bundles.values()))
    cases = {"PyTorch eager float32": Case(first, TorchBackend(Checkpoint(checkpoint)))}
    cases |= {f"bundle {name}": Case(bundle, OnnxRuntimeBackend(bundle, threads)) for name, bundle in bundles.items()}
    for case in cases.values():
        case.run()
    runs: dict[str, list[StageTimes]] = {name: [] for name in cases}
    for _ in range(options.runs):
        for name, case in cases.items():
            runs[name].append(case.run())
    medians = {name: _medians(times) for name, times in runs.items()}
    prompt_tokens = len(next(iter(cases.values())).prompt.token_ids)
    _print(medians, prompt_tokens, threads, f"width {options.width}, {options.layers} layers")
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


def _print(medians: dict[str, StageTimes], prompt_tokens: int, threads: int, title: str) -> None:
    table = Table(title=f"{title}, one {FRAME[0]}x{FRAME[1]} frame, {prompt_tokens} prompt tokens, {threads} threads")
    table.add_column("stage")
    for name in medians:
        table.add_column(name, justify="right")
    reference = next(iter(medians.values()))
    for stage in ("vision", "projector", "prefill", "decode"):
        cells = []
        for times in medians.values():
            seconds = getattr(times, stage)
            ratio = getattr(reference, stage) / seconds
            cells.append(f"{seconds * 1e3:,.1f} ms" + ("" if times is reference else f"  ({ratio:.2f}x)"))
        table.add_row(f"{stage}, a token" if stage == "decode" else stage, *cells)
    table.add_row("decode, tokens/s", *(f"{1 / times.decode:.1f}" for times in medians.values()))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
