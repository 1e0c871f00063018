"""A bundle's graphs in ONNX Runtime's CUDA provider, each on a stream of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnxruntime as ort

from echovlm_edge.plugins.dual_path_moe.gpu_kernels import has_gpu_kernels
from echovlm_edge.runtime.backends import SlotMemory
from echovlm_edge.runtime.backends.gpu.cuda_driver import CudaDevice, CudaStream
from echovlm_edge.runtime.backends.gpu.device import Binding, Context, EngineLimits, PartEngine
from echovlm_edge.runtime.backends.gpu.memory import check_memory
from echovlm_edge.runtime.backends.onnxruntime_session import (
    CPU,
    Provider,
    memory_errors,
    open_session,
    session_options,
)
from echovlm_edge.runtime.backends.operator_times import NodeTime, onnxruntime_runs
from echovlm_edge.runtime.bundle.manifest import Bundle, Part, numpy_dtype
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.extras import install_hint, reinstall_hint

CUDA = "CUDAExecutionProvider"
WHERE = "cuda"  # ONNX Runtime's name of the device that has the tensors
ON_HOST = ("int32", "int64")  # types of what the provider's operators read on the host: lengths and indices


def load_graphs(bundle: Bundle, device: CudaDevice, memory: SlotMemory, profile: bool) -> dict[str, PartEngine]:
    """Prepare the bundle's parts; each is loaded onto the device with the stream that it will run on.

    Raises:
        NotPossibleHere: this ONNX Runtime has no CUDA provider, this install no kernels for the device that the bundle needs, or the
            device too little memory.
    """
    if CUDA not in ort.get_available_providers():
        raise NotPossibleHere(
            f"The installed ONNX Runtime has no {CUDA}: pip uninstall onnxruntime, then {install_hint('gpu')}."
        )
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # CUDA's and cuDNN's libraries where pip put them
    check_kernels(bundle, device)
    check_memory(bundle, device, memory)
    return {part.name: OnnxRuntimeEngine(bundle, part, providers_on, profile) for part in bundle.manifest.parts}


def check_kernels(bundle: Bundle, device: CudaDevice) -> None:
    """Refuse a bundle that needs this project's GPU kernels, if this install has none for the device.

    Raises:
        NotPossibleHere: it has none.
    """
    major, minor = divmod(device.compute_capability, 10)
    if bundle.manifest.operator_library and not has_gpu_kernels((major, minor)):
        raise NotPossibleHere(
            f"The bundle {bundle.path} needs GPU kernels, and this install has none for compute capability {major}.{minor}: build the "
            f"bundle with --spell-out, or install triton, then {reinstall_hint(gpu_kernels=True)}."
        )


def providers_on(stream: CudaStream) -> list[Provider]:
    """Return the CUDA provider on a stream, with the CPU for what it leaves to that."""
    # The arena grows by what is requested and does not double: the large block, the weights, is allocated once.
    options = {"arena_extend_strategy": "kSameAsRequested", "user_compute_stream": str(int(stream.handle))}
    return [(CUDA, options), (CPU, {})]


@dataclass
class OnnxRuntimeEngine:
    """One part's graph, a `PartEngine`. It has one session, on the stream of its first context."""

    bundle: Bundle
    part: Part
    providers: Callable[[Any], Sequence[Provider]]
    profile: bool = False
    _session: ort.InferenceSession | None = None
    _trace: TemporaryDirectory[str] | None = None

    @property
    def limits(self) -> EngineLimits:
        """The provider's attention takes one token of several sequences, or several of one; its runs are not recorded."""
        return EngineLimits(tokens=1, recorded=False)

    def new_context(self, stream: Any, recorded: bool) -> Context:
        """Make a context, as `PartEngine.new_context` does; all are on one stream."""
        if self._session is None:
            self._trace = TemporaryDirectory(prefix="echovlm-operators-") if self.profile else None
            trace = Path(self._trace.name) / self.part.name if self._trace else None
            providers, options = self.providers(stream), session_options(self.bundle, threads=1)
            self._session = open_session(self.bundle, self.part, options, providers, trace)
            refuse_fallback(self._session, providers[0][0], self.bundle.path / self.part.files[0].name)
        return OnnxRuntimeContext(self, self._session)

    def profiled_runs(self) -> list[list[NodeTime]] | None:
        """Read every run's operator times from the session's file, as `PartEngine.profiled_runs` does."""
        if self._trace is None or self._session is None:
            return None
        runs = onnxruntime_runs(Path(self._session.end_profiling()))
        self._trace.cleanup()
        self._trace = None
        return runs


@dataclass
class OnnxRuntimeContext:
    """A `Context` of ONNX Runtime; a session may have many."""

    engine: OnnxRuntimeEngine
    session: ort.InferenceSession

    def queue(self, inputs: Mapping[str, Binding], outputs: Mapping[str, Binding]) -> None:
        """Queue a run, as `Context.queue` does: the provider's kernels go to our stream, and nothing waits for them."""
        part, binding = self.engine.part, self.session.io_binding()
        for tensor in part.inputs:
            at = inputs[tensor.name]
            where, address = (WHERE, at.address)
            if tensor.dtype in ON_HOST and at.host_address is not None:
                where, address = "cpu", at.host_address
            binding.bind_input(tensor.name, where, 0, numpy_dtype(tensor.dtype), at.shape, address)
        for tensor in part.outputs:
            at = outputs[tensor.name]
            binding.bind_output(tensor.name, WHERE, 0, numpy_dtype(tensor.dtype), at.shape, at.address)
        options = ort.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        with memory_errors():
            self.session.run_with_iobinding(binding, options)

    def recordable(self) -> bool:
        """The provider allocates and waits during a run: a capture takes neither."""
        return False

    def profile(self, report: Callable[[str, float], None]) -> None:
        """Nothing: a session writes its operators' times into a file, see `profiled_runs`."""


def refuse_fallback(session: ort.InferenceSession, first: str, file: Path) -> None:
    """Refuse a session that fell back to the CPU, which ONNX Runtime does silently if a provider cannot start.

    Raises:
        NotPossibleHere: the session fell back to the CPU.
    """
    if session.get_providers()[0] != first:
        raise NotPossibleHere(
            f"ONNX Runtime cannot start its {first} for {file}: install NVIDIA's driver and the CUDA and cuDNN libraries that "
            "onnxruntime-gpu names, or build the bundle with --target cpu."
        )
