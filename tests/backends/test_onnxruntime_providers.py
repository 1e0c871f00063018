"""ONNX Runtime's GPU providers: chosen by target, refused where they are missing or fall back to the CPU in silence."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnxruntime as ort
import pytest

from echovlm_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from echovlm_edge.runtime.backends.opening import open_backend
from echovlm_edge.runtime.backends.providers import CPU, CUDA, TENSORRT, provider_for
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.contracts.errors import NotPossibleHere


@pytest.fixture
def bundle(golden_bundle: Path) -> Bundle:
    """A bundle for a GPU."""
    bundle = Bundle(golden_bundle)
    bundle.manifest = dataclasses.replace(bundle.manifest, target="cuda")
    return bundle


@pytest.fixture
def gpu_runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An ONNX Runtime that says that it has the providers."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.skipif(CUDA in ort.get_available_providers(), reason="this ONNX Runtime has the CUDA provider")
@pytest.mark.parametrize(("name", "lacking"), [(None, CUDA), ("cuda", CUDA), ("tensorrt", TENSORRT)])
def test_an_onnx_runtime_for_cpus_says_what_to_install(bundle: Bundle, name: str | None, lacking: str) -> None:
    with pytest.raises(NotPossibleHere, match=rf"has no {lacking}: .*\[gpu\]"):
        open_backend(bundle, provider=name)


@pytest.mark.usefixtures("gpu_runtime")
@pytest.mark.skipif(CUDA in ort.get_available_providers(), reason="this ONNX Runtime has the CUDA provider")
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_falling_back_to_the_cpu_is_refused(bundle: Bundle) -> None:
    with pytest.raises(NotPossibleHere, match=rf"cannot start its {CUDA} for .*vision_encoder.onnx"):
        open_backend(bundle)


@pytest.mark.usefixtures("gpu_runtime")
def test_the_order_of_providers(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("echovlm_edge.runtime.backends.providers.plugin_path", lambda: Path("/lib/libplugins.so"))
    chain = provider_for(bundle, "tensorrt").chain
    assert [name for name, _ in chain] == [TENSORRT, CUDA, CPU]
    assert chain[0][1]["trt_extra_plugin_lib_paths"] == "/lib/libplugins.so"
    kept = Path(chain[0][1]["trt_engine_cache_path"])
    assert kept.is_dir() and kept.is_relative_to(tmp_path) and kept.name == bundle.manifest.bundle_id
    assert provider_for(bundle).device == "cuda"


def test_graphs_for_a_gpu_can_be_compared_on_a_cpu(bundle: Bundle) -> None:
    assert OnnxRuntimeBackend(bundle)
    assert open_backend(bundle, provider="cpu")
    with pytest.raises(NotPossibleHere, match="no provider metal"):
        open_backend(bundle, provider="metal")
