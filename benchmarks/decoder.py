"""Compare decode and prefill of four decoder layers of the published width with llama.cpp, alternating in one run.

python -m benchmarks.decoder [--json F]

llama.cpp takes part where the extra `llama` is installed (compiled on the spot, some minutes).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from rich.console import Console

from benchmarks.dual_path_moe import HIDDEN, PREFILL, DecoderRow, measure_decoder
from benchmarks.limits import Limits, Machine
from benchmarks.make_checkpoint import config_like_published, make_checkpoint
from echovlm_edge.export.build_engines import BuildOptions, build
from echovlm_edge.export.source.config import EchoVLMConfig
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.contracts.extras import install_hint
from echovlm_edge.runtime.contracts.tables import figures, names, new_table, print_table
from echovlm_edge.runtime.resources.processors import usable_processors

if TYPE_CHECKING:
    from benchmarks.llama import LlamaCpp

LAYERS = 4
CONFIG = config_like_published(HIDDEN, LAYERS)
OURS, LLAMA = "ours", "llama.cpp"
PHASES = ("decode", "prefill")


@dataclass(frozen=True)
class Speed:
    """One implementation in one phase: the median of its measurements. `share_outside_moe` is known only for ours."""

    impl: str
    phase: str
    tokens_per_second: float
    share_outside_moe: float | None = None


def made_bundle(folder: Path, console: Console) -> Bundle:
    """Build the decoder's int4 bundle once; its checkpoint of 5.6 GB is deleted afterwards."""
    path = folder / "bundle"
    if not path.exists():
        checkpoint = make_checkpoint(folder / "checkpoint", CONFIG)
        build(BuildOptions(checkpoint, path, precision="int4"), console)
        shutil.rmtree(checkpoint)
    return Bundle(path)


def measure(bundle: Bundle, folder: Path, threads: int, turns: int, console: Console) -> tuple[Machine, list[Speed]]:
    """Measure the machine and every implementation in both phases."""
    limits = Limits(threads, bundle.path / bundle.manifest.part("decoder").files[1].name)
    llama = _llama(folder, threads, console)
    ours: list[DecoderRow] = []
    theirs: list[dict[str, float]] = []
    for _ in range(turns):
        ours += measure_decoder(bundle, threads)
        limits.read()
        if llama:
            theirs.append(llama.tokens_per_second())
            limits.read()
    speeds = []
    for phase in PHASES:
        rows = [row for row in ours if row.phase == phase]
        rate, outside = (
            median(getattr(row, name) for row in rows) for name in ("tokens_per_second", "share_outside_moe")
        )
        speeds.append(Speed(OURS, phase, rate, outside))
        if theirs:
            speeds.append(Speed(LLAMA, phase, median(turn[phase] for turn in theirs)))
    return limits.machine(), speeds


def _llama(folder: Path, threads: int, console: Console) -> LlamaCpp | None:
    if not importlib.util.find_spec("llama_cpp"):
        console.print(f"llama.cpp is not installed and takes no part: {install_hint('llama')}.", markup=False)
        return None
    from benchmarks.llama import LlamaCpp, write_model

    path = folder / "decoder.gguf"
    if not path.exists():
        write_model(path, EchoVLMConfig.from_json(CONFIG, "config").decoder)
    return LlamaCpp(path, threads)


def print_speeds(machine: Machine, speeds: list[Speed], console: Console) -> None:
    """Print tokens a second by phase."""
    table = new_table(
        f"{LAYERS} layers of width {HIDDEN}, int4, prefill of {PREFILL}, {machine.cpu}, {machine.threads} threads: "
        f"reads {machine.read_gbps:.1f} GB/s, int8 peak {machine.int8_gops:.0f} GOP/s",
        names("phase"),
        names("by"),
        figures("tokens/s"),
        figures("outside\nDualPathMoE"),
    )
    for speed in speeds:
        outside = "" if speed.share_outside_moe is None else f"{speed.share_outside_moe:.1%}"
        table.add_row(speed.phase, speed.impl, f"{speed.tokens_per_second:,.1f}", outside)
    print_table(console, table)


def main() -> int:
    """Run the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(description="Time a decoder of published width compared with llama.cpp.")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=usable_processors())
    parser.add_argument("--folder", type=Path, default=Path("build/decoder"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    console = Console(stderr=True)
    bundle = made_bundle(options.folder, console)
    machine, speeds = measure(bundle, options.folder, options.threads, options.turns, console)
    print_speeds(machine, speeds, Console())
    if options.json:
        report = {"machine": asdict(machine), "decoder": [asdict(speed) for speed in speeds]}
        options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
