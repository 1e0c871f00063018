"""Graphs for ONNX Runtime's CUDA provider: refused where it is missing or falls back to the CPU in silence; run as any GPU's engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from echovlm_edge.plugins.dual_path_moe.library import OPERATOR_LIBRARY
from echovlm_edge.runtime.backends import SlotMemory, SlotRows, new_cache
from echovlm_edge.runtime.backends.gpu import cuda_driver, onnxruntime_engine
from echovlm_edge.runtime.backends.gpu.backend import GpuBackend
from echovlm_edge.runtime.backends.gpu.onnxruntime_engine import CUDA
from echovlm_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from echovlm_edge.runtime.backends.onnxruntime_session import CPU
from echovlm_edge.runtime.backends.opening import open_backend
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.prompting.rotary import Angles
from tests.support.numpy_cuda import NumpyDriver
from tests.support.numpy_device import EagerStream, NumpyDevice

BuildBundle = Callable[..., Path]
HAS_CUDA = CUDA in ort.get_available_providers()


@pytest.fixture(scope="module")
def bundle(build_bundle: BuildBundle) -> Bundle:
    return Bundle(build_bundle(target="cuda", precision="fp16"))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> NumpyDevice:
    """A GPU of numpy, whose memory ONNX Runtime's CPU provider can read."""
    device = NumpyDevice(stream=EagerStream)
    monkeypatch.setattr(cuda_driver, "_driver", lambda: NumpyDriver(device))
    return device


@pytest.fixture
def cuda_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX Runtime that says that it has the provider."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)


@pytest.fixture
def backend(bundle: Bundle, device: NumpyDevice, cuda_runtime: None, monkeypatch: pytest.MonkeyPatch) -> GpuBackend:
    monkeypatch.setattr(onnxruntime_engine, "providers_on", lambda stream: [(CPU, {})])
    monkeypatch.setattr(onnxruntime_engine, "WHERE", "cpu")
    opened = open_backend(bundle)
    assert isinstance(opened, GpuBackend)
    return opened


@pytest.mark.skipif(HAS_CUDA, reason="this ONNX Runtime has the CUDA provider")
@pytest.mark.usefixtures("device")
def test_an_onnx_runtime_for_cpus_says_what_to_install(bundle: Bundle) -> None:
    with pytest.raises(NotPossibleHere, match=rf"has no {CUDA}: .*\[gpu\]"):
        open_backend(bundle)


@pytest.mark.usefixtures("device", "cuda_runtime")
@pytest.mark.skipif(HAS_CUDA, reason="this ONNX Runtime has the CUDA provider")
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_falling_back_to_the_cpu_is_refused(bundle: Bundle) -> None:
    with pytest.raises(NotPossibleHere, match=rf"cannot start its {CUDA} for .*\.onnx"):
        open_backend(bundle)


@pytest.mark.usefixtures("device", "cuda_runtime")
def test_a_gpu_without_kernels_is_refused_before_anything_is_loaded(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where the bundle needs them; the numpy GPU is an Orin by its compute capability."""
    needing = Bundle(bundle.path)
    needing.manifest = replace(bundle.manifest, operator_library=OPERATOR_LIBRARY)
    monkeypatch.setattr(onnxruntime_engine, "has_gpu_kernels", lambda capability: capability != (8, 7))
    with pytest.raises(
        NotPossibleHere, match=r"has none for compute capability 8\.7: build the bundle with --spell-out, or"
    ):
        open_backend(needing)
    onnxruntime_engine.check_kernels(bundle, cuda_driver.CudaDevice())
    monkeypatch.setattr(onnxruntime_engine, "has_gpu_kernels", lambda capability: capability == (8, 7))
    onnxruntime_engine.check_kernels(needing, cuda_driver.CudaDevice())


@pytest.mark.usefixtures("cuda_runtime")
def test_a_bundle_that_does_not_fit_is_refused_before_it_is_loaded(bundle: Bundle, device: NumpyDevice) -> None:
    device.memory = 1000
    with pytest.raises(NotPossibleHere, match=r"needs .* GB more memory on numpy .*weights .*8 KV caches of 64 tokens"):
        open_backend(bundle, memory=SlotMemory(8, 64))


def test_a_step_copies_the_best_tokens_back_and_its_logits_only_where_they_are_read(
    bundle: Bundle, backend: GpuBackend, device: NumpyDevice
) -> None:
    slots, spec = backend.new_slots(SlotMemory(3, 40)), bundle.manifest.model
    angles = Angles(np.ones((1, spec.head_dim // 2), np.float32), np.zeros((1, spec.head_dim // 2), np.float32))
    rows = [SlotRows(slot, 0, backend.embed(np.array([7 * slot.number])), angles) for slot in slots]
    device.downloaded = 0
    found = backend.turn(rows)
    assert device.downloaded == 3 * (8 + 4), "a token and a first logit of each"
    reference = OnnxRuntimeBackend(bundle)
    for row, (logits,) in zip(rows, found, strict=True):
        cache = new_cache(reference, 40)
        expected = reference.decode(row.embeddings, angles, 0, np.zeros(1, np.int64), cache)[0]
        np.testing.assert_allclose(np.array(logits), expected, atol=1e-3)
        assert logits.argmax() == expected.argmax()  # type: ignore[attr-defined]


def test_graphs_for_a_gpu_can_be_compared_on_a_cpu(bundle: Bundle) -> None:
    assert OnnxRuntimeBackend(bundle)
