"""Choose the backend for a bundle: TensorRT for engines, ONNX Runtime for graphs."""

from __future__ import annotations

from pathlib import Path

from echovlm_edge.plugins.dual_path_moe.library import PLUGIN_LIBRARY, plugin_path
from echovlm_edge.runtime.backends import Backend
from echovlm_edge.runtime.backends.one_by_one import OneByOne
from echovlm_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from echovlm_edge.runtime.backends.providers import ON_CPU, provider_for
from echovlm_edge.runtime.bundle.context import context_length
from echovlm_edge.runtime.bundle.manifest import Bundle

ENGINE = ".engine"


def open_backend(
    bundle: Bundle,
    threads: int | None = None,
    max_sequence: int | None = None,
    provider: str | None = None,
    profile: bool = False,
) -> Backend:
    """Load a bundle's parts on the device that runs them.

    Args:
        bundle: its parts' files decide which engine kind they are.
        threads: of ONNX Runtime; defaults to `usable_processors`.
        max_sequence: length in tokens of the cache for which memory is checked; defaults to the bundle's limit.
        provider: of ONNX Runtime, `cpu`, `cuda` or `tensorrt`; defaults to that of the bundle's target.
        profile: measure operators, for `ProfiledBackend.operator_times`.

    Raises:
        NotPossibleHere: this machine or install cannot run the bundle.
        InvalidInput: `max_sequence` is above the bundle's limit, and its TensorRT engines have caches of that length.
    """
    if bundle.manifest.part("decoder").files[0].name.endswith(ENGINE):
        return _tensorrt(bundle, context_length(bundle.manifest.limits.max_sequence, max_sequence), profile)
    chosen = provider_for(bundle, provider)
    backend = OnnxRuntimeBackend(bundle, threads, chosen, profile)
    return backend if chosen == ON_CPU else OneByOne(backend)


def _tensorrt(bundle: Bundle, max_sequence: int, profile: bool) -> Backend:
    # Imported late: most installs have no GPU, and no package for one.
    from echovlm_edge.runtime.backends.cuda_driver import CudaDevice
    from echovlm_edge.runtime.backends.tensorrt import TensorRTBackend
    from echovlm_edge.runtime.backends.tensorrt_engine import load_engines

    device = CudaDevice()
    return TensorRTBackend(bundle, device, load_engines(bundle, device, max_sequence, plugin_for(bundle)), profile)


def plugin_for(bundle: Bundle) -> Path | None:
    """Find the plugin library: the one in the bundle, or else this install's, if any."""
    brought = f"lib{PLUGIN_LIBRARY}.so"
    if any(file.name == brought for file in bundle.manifest.files):
        return bundle.path / brought
    return plugin_path()
