"""The process of one stage: `python -m benchmarks.gpu_check.one_stage NAME FOLDER [--rehearse]`, which `stages.run_stage` starts."""

from __future__ import annotations

import argparse
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.figures import Part, write_part
from benchmarks.gpu_check.setting import LeftOut, Setting
from benchmarks.gpu_check.stages import STAGES, Stage, log_of
from echovlm_edge.runtime.contracts.errors import UserError

CUDA = "CUDAExecutionProvider"


def run(stage: Stage, setting: Setting) -> Part:
    """Run a stage to its end, and write what it has after every figure; an error becomes one sentence."""
    file = setting.folder / f"{stage.name}.part.json"
    kept: dict[str, Any] | None = None

    def keep(found: Any) -> None:
        nonlocal kept
        kept = asdict(found)
        write_part(file, Part(figures=kept))

    try:
        check_needs(stage, setting)
        if setting.rehearsal and stage.stand_in:
            from tests.support.stand_in_gpu import install, install_kernels

            install("cuda")
            install_kernels()
        call: Callable[[Setting, Callable[[Any], None]], None] = pkgutil.resolve_name(stage.function)
        call(setting, keep)
        part = Part("done", "", kept)
    except LeftOut as reason:
        part = Part("left out", str(reason), kept)
    except UserError as error:
        part = Part("failed", str(error), kept)
    except Exception as error:
        traceback.print_exc()
        said = str(error).strip().partition("\n")[0].rstrip(".")
        part = Part("failed", f"{type(error).__name__}: {said}: see {log_of(stage.name, setting)}.", kept)
    write_part(file, part)
    return part


def check_needs(stage: Stage, setting: Setting) -> None:
    """Check that what a stage needs is installed, without importing most of it.

    Raises:
        LeftOut: something is missing; the sentence names it.
    """
    if missing := [module for module in stage.needs if not importable(module)]:
        raise LeftOut(f"{', '.join(missing)} cannot be imported here.")
    if stage.provider and not setting.rehearsal:
        import onnxruntime

        if CUDA not in onnxruntime.get_available_providers():
            raise LeftOut(
                f"The installed ONNX Runtime {onnxruntime.__version__} has no CUDA provider: install onnxruntime-gpu."
            )


def importable(module: str) -> bool:
    """Check whether a module is installed, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # of the package around it
        return False


def main() -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--function", default="", help="module:name, of a stage that is not in the table")
    options = parser.parse_args()
    known = {stage.name: stage for stage in STAGES}
    stage = Stage(options.name, "", options.function, 0, stand_in=False) if options.function else known[options.name]
    run(stage, Setting(options.folder, options.rehearse))
    return 0


if __name__ == "__main__":
    sys.exit(main())
