"""A session of ONNX Runtime with the CUDA kernel of DualPathMoE, on a machine without a GPU.

The kernel's own process has `cuda_driver_double.cpp` as its CUDA driver, whose launches are run by `numpy_kernels`, and the library
`cuda_kernel_on_cpu.cpp`, which registers the kernel for the CPU's provider.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tests.support.numpy_kernels import NumpyKernels

ON_LAUNCH = ctypes.CFUNCTYPE(
    None, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint), ctypes.c_size_t, ctypes.POINTER(ctypes.c_uint64)
)
Feeds = Mapping[str, NDArray[Any]]
STREAM = 0x77  # that the provider's stand-in gives


@dataclass
class Outcome:
    """A session's first output for each of the feeds, the kernels it launched for them, and its error, if any."""

    outputs: list[NDArray[Any]] = field(default_factory=list)
    launches: list[list[str]] = field(default_factory=list)
    error: str = ""


def in_session(build: Path, model: bytes | Path, feeds: Sequence[Feeds], kernels: NumpyKernels) -> Outcome:
    """Run a model on each of the feeds in a process of its own; `build` is the folder of the test libraries."""
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=pickle.dumps((str(build / "libcuda_kernel_on_cpu.so"), model, list(feeds), kernels)),
        env=os.environ | {"LD_LIBRARY_PATH": str(build / "double")},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    outcome = pickle.loads(done.stdout)
    assert isinstance(outcome, Outcome)
    return outcome


def _run(library: str, model: bytes | Path, feeds: Sequence[Feeds], kernels: NumpyKernels) -> Outcome:
    import onnxruntime as ort

    outcome, failures = Outcome(), []

    @ON_LAUNCH
    def on_launch(entry: bytes, grid: Any, stream: int, parameters: Any) -> None:
        try:
            kernel = entry.decode().partition("_80_")[0]
            assert stream == STREAM
            kernels.launch(kernel, (grid[0], grid[1]), parameters[: len(entry.decode().rpartition("_")[2])])
            outcome.launches[-1].append(kernel)
        except BaseException as failure:
            failures.append(failure)

    ctypes.CDLL("libcuda.so.1").cuda_driver_double_on_launch(on_launch)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(library)
    try:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        for feed in feeds:
            outcome.launches.append([])
            outcome.outputs.append(session.run(None, feed)[0])
    except Exception as error:  # ONNX Runtime raises a different class per status, without a common base class
        outcome.error = str(error)
    if failures:
        raise failures[0]
    return outcome


if __name__ == "__main__":
    from tests.support import cuda_kernel_session  # by this name, so that what is pickled is found under it

    answer = cuda_kernel_session._run(*pickle.load(sys.stdin.buffer))
    sys.stdout.buffer.write(pickle.dumps(answer))
