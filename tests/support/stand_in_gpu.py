"""A GPU of numpy in a process: CUDA's driver API with TensorRT-RTX, or with ONNX Runtime's CPU provider in the CUDA provider's place.

`pytest --backend tensorrt` and `--backend cuda` run the service's tests on it: everything but the GPU is what is served.
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnxruntime as ort

from echovlm_edge.runtime.backends.gpu import cuda_driver, onnxruntime_engine
from echovlm_edge.runtime.bundle.manifest import PREFILL_CHUNK
from tests.support.numpy_cuda import NumpyDriver, NumpyTensorRT
from tests.support.numpy_device import EagerStream, NumpyDevice

ROOT = Path(__file__).parents[2]
BACKENDS = ("cpu", "tensorrt", "cuda")
MEMORY = 16 << 30
installed: list[str] = []
BATCH, CONTEXT = 8, 4096  # of its TensorRT engines


def install(backend: str) -> None:
    """Put the stand-in for `backend` into this process."""
    installed.append(backend)
    eager = backend == "cuda"  # ONNX Runtime runs at once, so that what it waits for must be done
    device = NumpyDevice(memory=MEMORY, stream=EagerStream) if eager else NumpyDevice(memory=MEMORY)
    driver = NumpyDriver(device)
    cuda_driver._driver = lambda: driver
    if backend == "tensorrt":
        module = NumpyTensorRT(device, CONTEXT, batch=BATCH, chunk=PREFILL_CHUNK)
        sys.modules["tensorrt_rtx"] = module  # type: ignore[assignment]
    else:
        real = ort.get_available_providers()
        ort.get_available_providers = lambda: [onnxruntime_engine.CUDA, *real]
        onnxruntime_engine.providers_on = lambda stream: [(onnxruntime_engine.CPU, {})]
        onnxruntime_engine.WHERE = "cpu"


def install_kernels() -> None:
    """Let bundles for `cuda` have DualPathMoE as an operator, which the CPU's kernel then runs in the GPU's place."""
    from echovlm_edge.export import targets

    targets.has_gpu_kernels = lambda: True
    onnxruntime_engine.has_gpu_kernels = lambda capability: True


def preamble() -> str:
    """Return the lines of a program that put the same stand-in into its process, if there is one in this."""
    if not installed:
        return ""
    return f"""import sys
sys.path.insert(0, {str(ROOT)!r})
from tests.support.stand_in_gpu import install
install({installed[-1]!r})
"""


def write_command(file: Path) -> str:
    """Write an executable that is `echovlm-serve` on the same stand-in; returns its path."""
    program = f"#!{sys.executable}\n{preamble()}from echovlm_edge.commands import serve\nsys.exit(serve())\n"
    file.write_text(program, encoding="utf-8")
    file.chmod(0o755)
    return str(file)
