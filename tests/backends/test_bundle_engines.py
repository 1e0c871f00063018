"""Bundles of other shapes and precisions: parity, and a KV cache that stays where it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks.make_checkpoint import config_like_published, make_checkpoint
from echovlm_edge.export.build_engines import BuildOptions, build
from echovlm_edge.export.parity.parity import samples
from echovlm_edge.export.parity.reference import TorchBackend
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.export.targets import target
from echovlm_edge.plugins.attention.reference import by_position
from echovlm_edge.plugins.dual_path_moe.library import OPERATOR_LIBRARY, library_path
from echovlm_edge.runtime.backends import Backend, new_cache
from echovlm_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.request import Frame, GenerationRequest, ImageInput, Sampling
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.imaging.preprocess import PreprocessSettings, fit
from echovlm_edge.runtime.prompting.rotary import MultimodalRotary
from tests.support import golden
from tests.support.dicom_files import png
from tests.support.watched_engine import finish

BuildBundle = Callable[..., Path]


def greedy(bundle: Bundle, backend: Backend, pixels: np.ndarray, tokens: int = 16) -> list[int]:
    """What a backend writes about a frame."""
    engine = ReportEngine(bundle, backend, options=EngineOptions(ignore_stop=True))
    resolution = engine.settings.resolution
    frame = Frame(fit(pixels, resolution), "frame", resolution)
    sampling = Sampling(max_new_tokens=tokens)
    written = finish(engine, GenerationRequest("Describe it.", sampling=sampling, frames=(frame,)))
    engine.close()
    return list(written.token_ids)


@pytest.mark.parametrize("target", ["cpu", "portable"])
def test_other_shapes_keep_parity(other_checkpoint: Path, build_bundle: BuildBundle, target: str) -> None:
    """7 experts top 3 renormalised, tied embeddings, other head counts, and an image as narrow as one may be."""
    bundle = Bundle(build_bundle(other_checkpoint, target=target))
    stages = {"vision_encoder", "projector", "token_embedding", "prefill", "decode"}
    assert {stage.stage for stage in bundle.manifest.parity} == stages
    assert max(stage.relative_error for stage in bundle.manifest.parity) < 1e-5
    narrow = np.random.default_rng(0).integers(0, 256, (90, 28, 3), dtype=np.uint8)
    reference = TorchBackend(Checkpoint(other_checkpoint))
    assert greedy(bundle, OnnxRuntimeBackend(bundle), narrow) == greedy(bundle, reference, narrow)


@pytest.mark.parametrize(("precision", "worst"), [("int8", 0.1), ("int4", 0.4), ("fp16", 0.02)])
def test_quantized_bundles_say_what_they_cost(
    tmp_path_factory: pytest.TempPathFactory, build_bundle: BuildBundle, precision: str, worst: float
) -> None:
    checkpoint = tmp_path_factory.mktemp("c") / "checkpoint"
    make_checkpoint(checkpoint, config_like_published(256, 2, vision_width=160, vision_depth=2))
    manifest = Bundle(build_bundle(checkpoint, precision=precision)).manifest
    logits = [stage for stage in manifest.parity if stage.stage in ("prefill", "decode")]
    assert all(0 < stage.relative_error < worst for stage in logits)
    assert all(stage.kl_divergence is not None and stage.top1_agreement is not None for stage in logits)


def test_smaller_precisions_make_smaller_bundles(build_bundle: BuildBundle) -> None:
    sizes = [
        sum(file.bytes for file in Bundle(build_bundle(precision=precision)).manifest.part("decoder").files)
        for precision in ("fp32", "fp16", "int8", "int4")
    ]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 0.4 * sizes[0]


def test_decoding_leaves_the_cache_where_it_is(golden_bundle: Path) -> None:
    bundle = Bundle(golden_bundle)
    spec = bundle.manifest.model
    backend = OnnxRuntimeBackend(bundle)
    cache = new_cache(backend, 64)
    addresses = [buffer.ctypes.data for buffer in cache.buffers.values()]
    rotary = MultimodalRotary(spec.mrope_section, spec.rope_theta)
    for past in range(20):
        token = backend.embed(np.array([past]))
        angles = rotary.angles(np.full((3, 1), past))
        backend.decode(token, angles, past, np.zeros(1, np.int64), cache)
        keys = by_position(cache.buffers["keys.0"])
        assert keys[0, 0, past].any(), "the new key was not written into the caller's own buffer"
        assert not keys[0, 0, past + 1 :].any(), "something was written beyond the new token"
    assert [buffer.ctypes.data for buffer in cache.buffers.values()] == addresses


def test_chunked_prefill_equals_one_pass(golden_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ReportEngine.open(golden_bundle)
    request = GenerationRequest("Describe it. " * 20, (ImageInput(png(96, 64)),), Sampling(max_new_tokens=8))
    whole = list(engine.generate(request))[-1]
    monkeypatch.setattr("echovlm_edge.runtime.engine.scheduling.policy.CHUNK", 16)
    assert list(engine.generate(request))[-1].token_ids == whole.token_ids  # type: ignore[union-attr]


def test_samples_are_real_frames_and_a_narrow_crop() -> None:
    first, crop = samples(PreprocessSettings())
    assert first.patches.values.std() > 0.1
    assert crop.patches.grid[2] < first.patches.grid[2]


needs_library = pytest.mark.skipif(library_path() is None, reason="installed without a C++ compiler")


@needs_library
@pytest.mark.parametrize("precision", ["int4", "fp32"])
def test_a_cpu_bundle_runs_on_the_operator_library_and_says_so(build_bundle: BuildBundle, precision: str) -> None:
    manifest = Bundle(build_bundle(precision=precision)).manifest
    operators = manifest.part("decoder").operators
    assert manifest.operator_library == OPERATOR_LIBRARY
    assert operators["echovlm::DualPathMoE"] == manifest.model.num_layers
    assert ("echovlm::BlockQuantLinear" in operators) == (precision == "int4")
    vision = manifest.part("vision_encoder").operators
    blocks = vision["LayerNormalization"] // 2
    assert blocks and vision.get("echovlm::BlockQuantMLP", 0) == (blocks if precision == "int4" else 0)


@needs_library
@pytest.mark.parametrize("precision", ["int4", "fp32"])
def test_without_the_library_the_operators_are_spelled_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr("echovlm_edge.export.targets.library_path", lambda: None)
    assert "C++ compiler" in target("cpu").warning
    build(BuildOptions(golden.CHECKPOINT, tmp_path / "bundle", precision=precision), Console(quiet=True))
    manifest = Bundle(tmp_path / "bundle").manifest
    assert manifest.operator_library is None
    assert not any(name.startswith("echovlm") for part in manifest.parts for name in part.operators)


@needs_library
def test_a_bundle_that_needs_a_library_this_install_lacks_is_one_sentence(
    golden_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("echovlm_edge.runtime.backends.onnxruntime_session.library_path", lambda: None)
    with pytest.raises(NotPossibleHere, match="needs the operator library echovlm_dual_path_moe"):
        OnnxRuntimeBackend(Bundle(golden_bundle))
