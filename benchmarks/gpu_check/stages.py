"""The stages of a check, each in a process of its own: one that fails, hangs or breaks the GPU's context harms no other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from benchmarks.gpu_check.figures import FIGURES, Part, Results, StageEnd, read_part
from benchmarks.gpu_check.setting import ROOT, Setting

LEAST_SECONDS = 5.0  # in which no stage ends
NOTHING = Part()


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: of it, and of its figures in `Results`.
        what: it finds out, in a few words.
        function: `module:name` of what its process calls with the setting and with what keeps figures.
        seconds: after which it is stopped.
        needs: modules without which it is left out.
        provider: whether it needs ONNX Runtime's CUDA provider.
        stand_in: whether a rehearsal puts a stand-in for the GPU into its process.
    """

    name: str
    what: str
    function: str
    seconds: float
    needs: tuple[str, ...] = ()
    provider: bool = False
    stand_in: bool = True


ON_GPU = ("cuda.bindings", "onnxruntime", "pydantic", "tokenizers", "jinja2", "PIL")
BUILDS = (*ON_GPU, "torch", "onnx_ir", "onnxscript", "safetensors")
STAGES = (
    Stage("machine", "the GPU and its memory's bandwidth", f"{__package__}.checks.machine:run", 30, ("cuda.bindings",)),
    Stage(
        "tests", "tests/gpu", f"{__package__}.checks.device_tests:run", 120, ("pytest", "hypothesis"), stand_in=False
    ),
    Stage(
        "tokens", "greedy tokens", f"{__package__}.checks.golden_tokens:run", 120, (*BUILDS, "scipy", "pydicom"), True
    ),
    Stage("reuse", "what is read ahead", f"{__package__}.checks.reuse:run", 60, BUILDS, True),
    Stage(
        "published", "the published size", f"{__package__}.checks.published_size:run", 240, (*BUILDS, "dashscope"), True
    ),
    Stage("eager", "PyTorch", f"{__package__}.checks.eager:run", 120, ("torch",), stand_in=False),
)


def run_stage(stage: Stage, setting: Setting, results: Results, seconds: float) -> Results:
    """Run one stage for at most `seconds`; returns the results with its figures and how it ended.

    Its output goes to a log in the setting's folder, and its figures so far to a file, which count if it is stopped.
    """
    left = setting.folder / f"{stage.name}.part.json"
    left.unlink(missing_ok=True)
    limit = min(stage.seconds, seconds)
    started = time.monotonic()
    if limit < LEAST_SECONDS:
        return _with(results, StageEnd(stage.name, "left out", 0.0, "The time for the whole check was used up."))
    reason = _run(stage, setting, left, limit)
    part = read_part(left)
    end = StageEnd(
        stage.name,
        part.state or "failed",
        round(time.monotonic() - started, 1),
        part.reason or ("" if part.state else reason),
    )
    left.unlink(missing_ok=True)
    return _with(results, end, part)


def log_of(stage: str, setting: Setting) -> Path:
    """Return the file that holds what a stage's process printed."""
    return setting.folder / f"{stage}.log"


def _run(stage: Stage, setting: Setting, left: Path, limit: float) -> str:
    """Run the process; returns why it ended, which counts if it did not say so itself."""
    options = ["--rehearse"] if setting.rehearsal else []
    command = [sys.executable, "-m", f"{__package__}.one_stage", stage.name, str(setting.folder), *options]
    if stage not in STAGES:  # a test's
        command += ["--function", stage.function]
    log = log_of(stage.name, setting)
    paths = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT))))
    with log.open("w", encoding="utf-8") as lines:
        process = subprocess.Popen(
            command, stdout=lines, stderr=lines, env={**os.environ, "PYTHONPATH": paths}, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            _kill(process)
            return f"It took longer than {limit:.0f} s and was stopped: see {log}."
        except BaseException:
            _kill(process)
            raise
    if code < 0:
        return f"Its process ended by {signal.Signals(-code).name}: see {log}."
    return f"Its process ended with exit code {code}: see {log}."


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it started, which are a session of their own."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _with(results: Results, end: StageEnd, part: Part = NOTHING) -> Results:
    """Put a stage's end and figures in the place of those of an earlier run."""
    stages = {stage.name: stage for stage in results.stages} | {end.name: end}
    found = replace(results, stages=tuple(stages.values()))
    if end.name not in FIGURES:
        return found
    kept: Any = None if part.figures is None else TypeAdapter(FIGURES[end.name]).validate_python(part.figures)
    return replace(found, **{end.name: kept})
