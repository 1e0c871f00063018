"""Bundles on the GPU: each stage against ONNX Runtime on the CPU, and whole reports, token by token, through the server."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from rich.console import Console

from echovlm_edge.export.build_engines import BuildOptions, build
from echovlm_edge.export.parity.reference import TorchBackend
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.plugins.dual_path_moe.gpu_kernels import has_gpu_kernels
from echovlm_edge.plugins.dual_path_moe.library import OPERATOR_LIBRARY, plugin_path
from echovlm_edge.runtime.backends import Backend, new_cache
from echovlm_edge.runtime.backends.gpu.cuda_driver import CudaDevice
from echovlm_edge.runtime.backends.gpu.onnxruntime_engine import CUDA
from echovlm_edge.runtime.backends.opening import open_backend
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.imaging.image_file import decode_image
from echovlm_edge.runtime.imaging.preprocess import PreprocessSettings, patchify
from echovlm_edge.runtime.imaging.sample import sample_image
from echovlm_edge.runtime.prompting.rotary import MultimodalRotary, vision_angles
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions
from tests.serving.test_golden_service import generate
from tests.support import golden
from tests.support.demo_reports import CHECKPOINT, reports
from tests.support.numpy_device import NumpyDevice
from tests.support.tensorrt_bundles import backend_of
from tests.support.tensorrt_graphs import build_graphs

MAX_SEQUENCE = 1024
OPTIONS = EngineOptions(8, prefix_bytes=64 << 20, spilled_bytes=64 << 20)
PRECISIONS = ("fp16", "int4")
# Largest error of a stage in units of its largest value. At fp16 both sides round products to 16 bits, in another order. At
# int4 the CPU's DualPathMoE rounds activations to 8 bits besides, which the GPU's does not.
TOLERANCE = {"fp16": 1e-2, "int4": 1e-1}
CERTAIN = 1e-2  # a golden step whose two best logits are closer may go either way in 16 bits


@pytest.fixture(scope="module", params=PRECISIONS)
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def engines(gpu: CudaDevice, precision: str, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The demo checkpoint as TensorRT engines, by the module that this machine has."""
    module = next((name for name in ("tensorrt_rtx", "tensorrt") if importlib.util.find_spec(name)), None)
    if module is None:
        pytest.skip("neither tensorrt_rtx nor tensorrt is installed")
    if plugin_path() is None:
        pytest.skip("installed without the plugin library: no C++ compiler or no TensorRT headers")
    output = tmp_path_factory.mktemp("engines") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        if module == "tensorrt":
            patch.setattr("echovlm_edge.export.targets.TARGETS", _by_tensorrt())
        build(_options(output, precision), Console(quiet=True))
    return Bundle(output)


def _by_tensorrt() -> dict[str, object]:
    """The targets, with `rtx` built by `tensorrt`: a device's own TensorRT runs what it builds."""
    from dataclasses import replace

    from echovlm_edge.export.targets import TARGETS

    return {**TARGETS, "rtx": replace(TARGETS["rtx"], tensorrt="tensorrt")}


def _options(output: Path, precision: str) -> BuildOptions:
    return BuildOptions(CHECKPOINT, output, target="rtx", precision=precision, max_sequence=MAX_SEQUENCE)


@pytest.fixture(scope="module")
def backend(engines: Bundle) -> Backend:
    return open_backend(engines, memory=OPTIONS.slot_memory(engines.manifest, None))


@pytest.fixture(scope="module")
def by_onnx_runtime(precision: str, tmp_path_factory: pytest.TempPathFactory) -> Backend:
    """The same graphs, run by ONNX Runtime on the CPU."""
    bundle = build_graphs(_options(tmp_path_factory.mktemp("graphs") / "bundle", precision))
    return backend_of(bundle, NumpyDevice(memory=8 << 30))


def _close(actual: object, expected: object, precision: str) -> float:
    """Compare; returns the error in units of the tolerance's."""
    one, other = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    error = float(np.abs(one - other).max() / np.abs(other).max())
    assert error < TOLERANCE[precision]
    return error


def test_every_stage_against_onnx_runtime(
    engines: Bundle, backend: Backend, by_onnx_runtime: Backend, precision: str, note: Callable[[str], None]
) -> None:
    spec = engines.manifest.model
    (frame,) = decode_image(sample_image())
    patches = patchify(frame.pixels, PreprocessSettings.from_config(engines.manifest.preprocess))
    angles = vision_angles(patches.grid, spec.merge_size, spec.vision_head_dim)
    features = by_onnx_runtime.encode(patches.values, angles)
    errors = {"vision encoder": _close(backend.encode(patches.values, angles), features, precision)}
    errors["projector"] = _close(backend.project(features), by_onnx_runtime.project(features), precision)
    caches = new_cache(backend, MAX_SEQUENCE), new_cache(by_onnx_runtime, MAX_SEQUENCE)
    rotary, past = MultimodalRotary(spec.mrope_section, spec.rope_theta), 0
    for count in (200, 17, 16, 1, 1, 1, 1, 3, 1):  # prompts in chunks, and steps before and after the graph is recorded
        embeddings = by_onnx_runtime.embed(np.arange(past, past + count) * 17 % spec.vocab_size)
        positions = rotary.angles(np.tile(np.arange(past, past + count), (3, 1)))
        rows = np.array([count - 1])
        actual, expected = (
            one.decode(embeddings, positions, past, rows, cache)
            for one, cache in zip((backend, by_onnx_runtime), caches, strict=True)
        )
        best = actual[0].argmax()
        logits = np.asarray(actual)
        assert logits[0, best] == logits[0].max(), "`best` is not the largest logit"
        errors[f"decoder, {count} after {past}"] = _close(logits, expected, precision)
        past += count
    note(f"{precision}, errors in units of the largest value: " + ", ".join(f"{k} {v:.1e}" for k, v in errors.items()))


def test_reports_through_the_server(
    engines: Bundle, backend: Backend, precision: str, note: Callable[[str], None]
) -> None:
    """At fp16 every token is the PyTorch model's; at int4 the weights differ, and the same texts twice are asked for."""
    engine = ReportEngine(engines, backend, options=OPTIONS)
    written = reports(engine)
    assert written == reports(engine), "not the same on every run"
    reference = reports(ReportEngine(engines, TorchBackend(Checkpoint(CHECKPOINT))))
    same = sum(one == other for one, other in zip(written, reference, strict=True))
    note(f"{precision}: {same} of {len(written)} reports are the PyTorch model's, token by token")
    assert precision != "fp16" or written == reference


def test_reports_by_onnx_runtime_with_our_operator(gpu: CudaDevice, precision: str, tmp_path: Path) -> None:
    """The target `cuda` on the demo's widths, which the kernels take: as `test_reports_through_the_server` has it for engines."""
    if CUDA not in ort.get_available_providers():
        pytest.skip("the installed ONNX Runtime has no CUDA provider (extra serve-gpu)")
    if not has_gpu_kernels(divmod(gpu.compute_capability, 10)):
        pytest.skip("the installed operator library has no kernels for this GPU (make kernels)")
    options = BuildOptions(
        CHECKPOINT, tmp_path / "bundle", target="cuda", precision=precision, max_sequence=MAX_SEQUENCE
    )
    build(options, Console(quiet=True))
    bundle = Bundle(options.output)
    assert bundle.manifest.operator_library == OPERATOR_LIBRARY
    engine = ReportEngine(bundle, open_backend(bundle))
    written = reports(engine)
    assert written == reports(engine), "not the same on every run"
    assert precision != "fp16" or written == reports(ReportEngine(bundle, TorchBackend(Checkpoint(CHECKPOINT))))


def test_golden_cases_by_onnx_runtimes_cuda_provider(
    gpu: CudaDevice, case: golden.Golden, build_bundle: Callable[..., Path]
) -> None:
    """The authors' own tokens, up to the first step that 16 bits leave open."""
    if CUDA not in ort.get_available_providers():
        pytest.skip("the installed ONNX Runtime has no CUDA provider (extra gpu)")
    server = ReportServer(
        ReportEngine.open(build_bundle(target="cuda", precision="fp16")), ServerOptions("127.0.0.1:0")
    )
    try:
        with Connection(server.address) as client:
            _, result = generate(client, case)
    finally:
        server.stop()
    certain = certain_steps(case)
    assert certain > 0
    assert list(result.token_ids)[:certain] == case.arrays["generated_ids"].tolist()[:certain]


def certain_steps(case: golden.Golden) -> int:
    """How many of a case's steps come before one whose two best logits are as close as CERTAIN."""
    best = np.sort(case.arrays["step_logits"], axis=1)[:, ::-1]
    open_steps = np.flatnonzero(best[:, 0] - best[:, 1] < CERTAIN)
    return int(open_steps[0]) if len(open_steps) else len(best)
