"""Check this project on an NVIDIA GPU (`make gpu-check`), in at most eight minutes, into one JSON file and a page.

python -m benchmarks.gpu_check [--stage NAME ...] [--skip NAME ...] [--minutes 8] [--folder build/gpu-check] [--rehearse]
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from benchmarks.gpu_check.figures import Results, read_results, write_results
from benchmarks.gpu_check.page import page, print_results
from benchmarks.gpu_check.setting import BUNDLES, ROOT, Setting
from benchmarks.gpu_check.stages import STAGES, run_stage
from echovlm_edge.runtime.contracts.command import SEVERAL, run_command
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.resources.nvml import compute_capability

RESULTS, PAGE = "results.json", "results.md"


def main() -> int:
    """Run the command; returns its exit code: 1 if a stage failed.

    Raises:
        NotPossibleHere: there is no GPU.
    """
    options = _parser().parse_args()
    folder: Path = options.folder.absolute()
    setting = Setting(folder / "rehearsal" if options.rehearse else folder, options.rehearse)
    if not options.rehearse and compute_capability() is None:
        raise NotPossibleHere(
            "There is no NVIDIA GPU here, or no driver: a rehearsal without one is python -m benchmarks.gpu_check --rehearse."
        )
    if not options.stage:  # a whole check builds its bundles itself: those of an earlier commit would be another's
        shutil.rmtree(setting.folder / BUNDLES, ignore_errors=True)
    setting.folder.mkdir(parents=True, exist_ok=True)
    file = setting.folder / RESULTS
    results = read_results(file) if options.stage and file.exists() else Results(rehearsal=options.rehearse)
    results = replace(results, created=datetime.now(UTC).isoformat(timespec="seconds"), commit=commit())
    console, ends = Console(), time.monotonic() + 60 * options.minutes
    chosen = [
        stage for stage in STAGES if stage.name in (options.stage or [stage.name]) and stage.name not in options.skip
    ]
    for stage in chosen:
        console.print(f"{stage.name}: {stage.what} …", end=" ")
        results = run_stage(stage, setting, results, ends - time.monotonic())
        write_results(file, results)
        end = results.stages[[end.name for end in results.stages].index(stage.name)]
        console.print(f"{end.state}, {end.seconds:.0f} s. {end.reason}", markup=False, highlight=False)
    (setting.folder / PAGE).write_text(page(results), encoding="utf-8")
    print_results(results, console)
    sent = f"Send back {setting.folder}/: {RESULTS}, {PAGE} and the logs. {PAGE} belongs under Results in docs/gpu-results.md."
    console.print(sent, markup=False, highlight=False)
    ended = {end.name: end.state for end in results.stages}
    return int(any(ended[stage.name] == "failed" for stage in chosen))


def commit() -> str:
    """Return the commit that is checked out, with a `+` if files differ from it; empty where there is no git."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return said.stdout.strip()


def _parser() -> argparse.ArgumentParser:
    known = [stage.name for stage in STAGES]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--stage", **SEVERAL, choices=known, help="run these alone; the others stay as the file has them")
    add("--skip", **SEVERAL, choices=known, default=[], help="leave these out")
    add("--minutes", type=float, default=8.0, help="for all stages together (default 8)")
    add("--folder", type=Path, default=Path("build/gpu-check"), help="for bundles, logs and results; needs 8 GB")
    add(
        "--rehearse",
        action="store_true",
        help="without a GPU, at small sizes: ONNX Runtime's CPU provider in the GPU's place",
    )
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
