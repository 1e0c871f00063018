"""The small kernel tests under NVIDIA's compute-sanitizer: no access out of bounds, no race, nothing read before it is written."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from echovlm_edge.runtime.backends.gpu.cuda_driver import CudaDevice

ROOT = Path(__file__).parents[2]
FOUND = 9


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_kernels_under(gpu: CudaDevice, tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if sanitizer is None:
        pytest.skip("compute-sanitizer, of the CUDA toolkit, is not installed")
    command = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), "--target-processes", "all"]
    tests = [sys.executable, "-m", "pytest", "tests/gpu/test_gpu_kernels.py", "-k", "small", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, *tests], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout, "no test ran"
