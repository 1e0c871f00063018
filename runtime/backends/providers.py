"""Where ONNX Runtime runs a graph: on the CPU, or on a GPU by its CUDA or its TensorRT provider."""

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
    """A choice of providers: the first runs what it can, the rest falls to those after it."""

    device: str  # as ONNX Runtime names where tensors lie
    chain: tuple[tuple[str, dict[str, Any]], ...]

    def check(self, session: ort.InferenceSession, file: Path) -> None:
        """ONNX Runtime falls back to the CPU in silence where a provider cannot start: refuse that.

        Raises:
            NotPossibleHere: it did.
        """
        first = self.chain[0][0]
        if session.get_providers()[0] != first:
            raise NotPossibleHere(
                f"ONNX Runtime cannot start its {first} for {file}: install NVIDIA's driver and the CUDA and cuDNN libraries "
                "that onnxruntime-gpu names, or build the bundle with --target cpu."
            )


ON_CPU = Provider("cpu", ((CPU, {}),))


def provider_for(bundle: Bundle, name: str | None = None) -> Provider:
    """The provider called `name` (`cpu`, `cuda` or `tensorrt`), by default the one that the bundle's target is for.

    Raises:
        NotPossibleHere: there is none of that name, or the installed ONNX Runtime lacks it.
    """
    name = name or ("cuda" if bundle.manifest.target == GPU_TARGET else "cpu")
    # Grown by what is asked for, not doubled: the cache and the weights are the large blocks, and they are allocated once.
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
    """Engines are kept from start to start, by bundle; graphs with DualPathMoE find it in our plugin library."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kept = home / "echovlm-edge" / bundle.manifest.bundle_id
    kept.mkdir(parents=True, exist_ok=True)
    options = {"trt_engine_cache_enable": True, "trt_engine_cache_path": str(kept), "trt_timing_cache_enable": True}
    plugin = plugin_path()
    return options | ({"trt_extra_plugin_lib_paths": str(plugin)} if plugin else {})
