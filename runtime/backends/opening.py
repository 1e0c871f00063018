"""Choose the backend for a bundle: TensorRT for engines, ONNX Runtime for graphs, on the CPU or a GPU."""

from __future__ import annotations

from pathlib import Path

from echovlm_edge.plugins.dual_path_moe.library import PLUGIN_LIBRARY, plugin_path
from echovlm_edge.runtime.backends import Backend, SlotMemory
from echovlm_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from echovlm_edge.runtime.bundle.manifest import Bundle

ENGINE = ".engine"
GRAPHS_ON_A_GPU = "cuda"  # the target whose graphs are for a GPU


def open_backend(
    bundle: Bundle, threads: int | None = None, memory: SlotMemory | None = None, profile: bool = False
) -> Backend:
    """Load a bundle's parts on the device that runs them.

    Args:
        bundle: its parts' files and its target decide which engine kind they are.
        threads: of ONNX Runtime on the CPU; defaults to `usable_processors`.
        memory: the slots for which a GPU must have memory; defaults to one of the bundle's whole context.
        profile: measure operators, for `ProfiledBackend.operator_times`.

    Raises:
        NotPossibleHere: this machine or install cannot run the bundle.
    """
    serialized = bundle.manifest.part("decoder").files[0].name.endswith(ENGINE)
    if not serialized and bundle.manifest.target != GRAPHS_ON_A_GPU:
        return OnnxRuntimeBackend(bundle, threads, profile)
    memory = memory or SlotMemory(1, bundle.manifest.limits.max_sequence)
    # Imported late: most installs have no GPU, and no package for one.
    from echovlm_edge.runtime.backends.gpu.backend import GpuBackend
    from echovlm_edge.runtime.backends.gpu.cuda_driver import CudaDevice
    from echovlm_edge.runtime.backends.gpu.onnxruntime_engine import load_graphs
    from echovlm_edge.runtime.backends.gpu.tensorrt_engine import load_engines

    device = CudaDevice()
    if serialized:
        return GpuBackend(bundle, device, load_engines(bundle, device, memory, plugin_for(bundle)), profile)
    return GpuBackend(bundle, device, load_graphs(bundle, device, memory, profile), profile)


def plugin_for(bundle: Bundle) -> Path | None:
    """Find the plugin library: the one in the bundle, or else this install's, if any."""
    brought = f"lib{PLUGIN_LIBRARY}.so"
    if any(file.name == brought for file in bundle.manifest.files):
        return bundle.path / brought
    return plugin_path()
