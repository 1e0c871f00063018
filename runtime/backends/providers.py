"""Choose where ONNX Runtime runs a graph: on the CPU, or on a GPU with its CUDA or TensorRT provider."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from echovlm_edge.plugins.dual_path_moe.library import plugin_path
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.extras import install_hint

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
GPU_TARGET = "cuda"  # the target whose graphs are for a GPU


@dataclass(frozen=True)
class Provider:
    """A choice of providers: the first one runs what it can, those after it run the rest."""

    device: str  # ONNX Runtime's name of the device that has the tensors
    chain: tuple[tuple[str, dict[str, Any]], ...]

    def check(self, session: ort.InferenceSession, file: Path) -> None:
        """Refuse a session that fell back to the CPU, which ONNX Runtime does silently if a provider cannot start.

        Raises:
            NotPossibleHere: the session fell back to the CPU.
        """
        first = self.chain[0][0]
        if session.get_providers()[0] != first:
            raise NotPossibleHere(
                f"ONNX Runtime cannot start its {first} for {file}: install NVIDIA's driver and the CUDA and cuDNN libraries "
                "that onnxruntime-gpu names, or build the bundle with --target cpu."
            )


ON_CPU = Provider("cpu", ((CPU, {}),))


def provider_for(bundle: Bundle, name: str | None = None) -> Provider:
    """Return the provider called `name` (`cpu`, `cuda` or `tensorrt`), by default that of the bundle's target.

    Raises:
        NotPossibleHere: there is no provider of that name, or the installed ONNX Runtime lacks it.
    """
    name = name or ("cuda" if bundle.manifest.target == GPU_TARGET else "cpu")
    # The arena grows by what is requested and does not double: the large blocks, cache and weights, are allocated once.
    cuda = (CUDA, {"arena_extend_strategy": "kSameAsRequested"})
    if name == "cpu":
        return ON_CPU
    if name == "cuda":
        return _installed(Provider("cuda", (cuda, (CPU, {}))))
    if name == "tensorrt":
        return _installed(Provider("cuda", ((TENSORRT, _tensorrt_options(bundle)), cuda, (CPU, {}))))
    raise NotPossibleHere(f"There is no provider {name}: choose one of cpu, cuda, tensorrt.")


def _installed(provider: Provider) -> Provider:
    first = provider.chain[0][0]
    if first not in ort.get_available_providers():
        raise NotPossibleHere(
            f"The installed ONNX Runtime has no {first}: pip uninstall onnxruntime, then {install_hint('gpu')}."
        )
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # CUDA's and cuDNN's libraries where pip put them
    return provider


def _tensorrt_options(bundle: Bundle) -> dict[str, Any]:
    """Set up the TensorRT provider: engines are cached per bundle across starts, and DualPathMoE comes from our plugin library."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kept = home / "echovlm-edge" / bundle.manifest.bundle_id
    kept.mkdir(parents=True, exist_ok=True)
    options = {"trt_engine_cache_enable": True, "trt_engine_cache_path": str(kept), "trt_timing_cache_enable": True}
    plugin = plugin_path()
    return options | ({"trt_extra_plugin_lib_paths": str(plugin)} if plugin else {})
