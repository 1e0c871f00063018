"""The TensorRT backend on a device of numpy: the authors' tokens, one number back per token, and nothing left to chance."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from echovlm_edge.runtime.backends import Backend, SlotCache, new_cache
from echovlm_edge.runtime.backends.gpu.backend import GpuBackend
from echovlm_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.contracts.errors import NotPossibleHere, UnusableNumbers
from echovlm_edge.runtime.contracts.request import Sampling
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.engine.tokens.sampling import Sampler
from echovlm_edge.runtime.profiling.measurement.operators import joined
from echovlm_edge.runtime.prompting.rotary import Angles, MultimodalRotary, vision_angles
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions
from tests.serving.test_golden_service import generate
from tests.support import golden
from tests.support.numpy_device import NumpyDevice
from tests.support.tensorrt_bundles import backend_of, tensorrt_like

FEW = EngineOptions(4, prefix_bytes=1 << 20, spilled_bytes=1 << 20)
BuildBundle = Callable[..., Path]
Make = Callable[..., tuple[Bundle, GpuBackend, NumpyDevice]]


@pytest.fixture(scope="module")
def portable(build_bundle: BuildBundle) -> Path:
    return build_bundle(target="portable")


@pytest.fixture(scope="module")
def make(portable: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The golden checkpoint on a new device of numpy."""
    bundles: dict[tuple[object, ...], Bundle] = {}

    def make(**options: object) -> tuple[Bundle, GpuBackend, NumpyDevice]:
        key = tuple(options.items())
        if key not in bundles:
            bundles[key] = tensorrt_like(portable, tmp_path_factory.mktemp("trt") / "bundle", **options)  # type: ignore[arg-type]
        device = NumpyDevice()
        return bundles[key], backend_of(bundles[key], device), device

    return make


def token(bundle: Bundle, backend: Backend, index: int) -> tuple[np.ndarray, Angles]:
    """Embedding and angles of some token at `index`."""
    spec = bundle.manifest.model
    rotary = MultimodalRotary(spec.mrope_section, spec.rope_theta)
    return backend.embed(np.array([7 * index % spec.vocab_size])), rotary.angles(np.full((3, 1), index))


def step(bundle: Bundle, backend: Backend, index: int, cache: object) -> object:
    """Decode that token."""
    return backend.decode(*token(bundle, backend, index), index, np.zeros(1, np.int64), cache)  # type: ignore[arg-type]


@pytest.mark.parametrize(("best", "drafting"), [(True, False), (False, False), (True, True)])
def test_tokens_and_text_through_the_server_are_the_authors(
    make: Make, case: golden.Golden, best: bool, drafting: bool
) -> None:
    bundle, backend, device = make(best=best)
    options = replace(FEW, drafting=drafting)
    server = ReportServer(ReportEngine(bundle, backend, options=options), ServerOptions("127.0.0.1:0"))
    try:
        with Connection(server.address) as client:
            for again in range(2):  # the second generation finds a used cache and a recorded graph
                streamed, result = generate(client, case)
                assert list(result.token_ids) == case.arrays["generated_ids"].tolist(), again
                assert streamed == case.text
    finally:
        server.stop()
    assert drafting or device.launches > 50, "the decoder's step was not a recorded graph"


def test_every_stage(make: Make, case: golden.Golden) -> None:
    bundle, backend, _ = make()
    logits = golden.check_stages(case, backend, bundle.manifest.model)
    assert [logits[row].argmax() for row in range(len(case.arrays["prefill_logits"]))] == case.arrays[
        "prefill_logits"
    ].argmax(1).tolist()


def test_a_greedy_token_copies_two_numbers_back(make: Make) -> None:
    bundle, backend, device = make()
    cache = new_cache(backend, 32)
    sampler = Sampler(Sampling(), np.array([], np.int64), bundle.manifest.model.vocab_size)
    for index in range(10):
        device.downloaded = 0
        sampler.choose(step(bundle, backend, index, cache)[0])  # type: ignore[index]
        assert device.downloaded == np.dtype(np.int64).itemsize + np.dtype(np.float32).itemsize
    assert device.launches == 11, "the last run before there were requests, and these"


@pytest.mark.parametrize("best", [True, False])
@pytest.mark.parametrize("recorded", [True, False])
def test_logits_that_are_no_numbers_are_refused_and_leave_no_trace(make: Make, best: bool, recorded: bool) -> None:
    bundle, backend, _ = make(best=best)
    cache = new_cache(backend, 32)
    sampler = Sampler(Sampling(), np.array([], np.int64), bundle.manifest.model.vocab_size)
    count = 6 if recorded else 1
    expected = [sampler.choose(step(bundle, backend, index, cache)[0]) for index in range(count)]  # type: ignore[index]
    embedding, angles = token(bundle, backend, count)
    nan = np.full_like(embedding, np.nan)
    with pytest.raises(UnusableNumbers):
        sampler.choose(backend.decode(nan, angles, count, np.zeros(1, np.int64), cache)[0])
    cache.clear(32)
    again = [sampler.choose(step(bundle, backend, index, cache)[0]) for index in range(count)]  # type: ignore[index]
    assert again == expected


def test_sampling_and_penalties_get_the_logits(make: Make, portable: Path) -> None:
    bundle, backend, _ = make()
    reference = OnnxRuntimeBackend(Bundle(portable))
    for options in (Sampling(temperature=1.0, seed=3), Sampling(repetition_penalty=1.5)):
        chosen = []
        for candidate in (backend, reference):
            cache, sampler = new_cache(candidate, 32), Sampler(options, np.arange(9), bundle.manifest.model.vocab_size)
            chosen.append([sampler.choose(step(bundle, candidate, index, cache)[0]) for index in range(12)])  # type: ignore[index]
        assert chosen[0] == chosen[1]


def test_logits_are_refused_once_they_are_overwritten(make: Make) -> None:
    bundle, backend, _ = make()
    cache = new_cache(backend, 8)
    first = step(bundle, backend, 0, cache)
    kept = first.copy()  # type: ignore[attr-defined]
    step(bundle, backend, 1, cache)
    with pytest.raises(RuntimeError, match="overwritten"):
        np.asarray(first)
    assert np.isfinite(kept).all()


def test_half_precision_tensors_and_short_integers(make: Make, portable: Path) -> None:
    bundle, backend, _ = make(floating="float16", integer="int32", capacity=64)
    reference = OnnxRuntimeBackend(Bundle(portable))
    caches = new_cache(backend, 40), new_cache(reference, 40)
    assert caches[0].max_sequence == 40 and caches[0].slots.layout.capacity == 64  # type: ignore[attr-defined]
    for index in range(8):
        actual, expected = (
            np.asarray(step(bundle, candidate, index, cache))
            for candidate, cache in zip((backend, reference), caches, strict=True)
        )
        # Half precision at every boundary: 2^-11 of a value, some layers deep.
        np.testing.assert_allclose(actual, expected, atol=1e-2 * np.abs(expected).max())


def test_two_sequences_do_not_meet(make: Make) -> None:
    bundle, backend, _ = make()
    alone = [
        np.asarray(step(bundle, backend, index, cache)) for cache in [new_cache(backend, 16)] for index in range(8)
    ]
    one, two = new_cache(backend, 16), new_cache(backend, 24)
    for index in range(8):
        np.testing.assert_array_equal(np.asarray(step(bundle, backend, index, one)), alone[index])
        if index % 2:
            step(bundle, backend, index // 2, two)


def encode(bundle: Bundle, backend: GpuBackend) -> np.ndarray:
    """Embeddings of a golden image."""
    case, spec = golden.load("one_image_en"), bundle.manifest.model
    (patches,), (grid,) = case.patches(), case.grids
    return backend.project(backend.encode(patches, vision_angles(grid, spec.merge_size, spec.vision_head_dim)))


def test_tokens_are_decoded_while_an_image_is_encoded(make: Make) -> None:
    bundle, backend, _ = make()
    expected_image, cache = encode(bundle, backend), new_cache(backend, 16)
    expected = [np.asarray(step(bundle, backend, index, cache)) for index in range(8)]

    inside, go_on, device = threading.Event(), threading.Event(), NumpyDevice()

    def hold() -> None:
        inside.set()
        assert go_on.wait(60)

    backend = backend_of(bundle, device, before_run={"vision_encoder": hold})
    cache = new_cache(backend, 16)
    with ThreadPoolExecutor(1) as encoder:
        encoding = encoder.submit(encode, bundle, backend)
        try:
            assert inside.wait(60)
            for index in range(8):
                np.testing.assert_array_equal(np.asarray(step(bundle, backend, index, cache)), expected[index])
        finally:
            go_on.set()
        np.testing.assert_array_equal(encoding.result(60), expected_image)
    assert device.launches, "no step was recorded meanwhile"


def test_an_image_is_encoded_while_a_step_is_recorded(make: Make) -> None:
    bundle, backend, _ = make()
    expected_image, cache = encode(bundle, backend), new_cache(backend, 16)
    expected = [np.asarray(step(bundle, backend, index, cache)) for index in range(8)]

    device, images = NumpyDevice(), list[np.ndarray]()
    with ThreadPoolExecutor(1) as encoder:

        def encode_meanwhile() -> None:
            if device.is_recording():
                images.append(encoder.submit(encode, bundle, backend).result(60))

        backend = backend_of(bundle, device, before_run={"decoder": encode_meanwhile})
        cache = new_cache(backend, 16)
        for index in range(8):
            np.testing.assert_array_equal(np.asarray(step(bundle, backend, index, cache)), expected[index])
    (image,) = images
    np.testing.assert_array_equal(image, expected_image)
    assert device.launches > 2


def test_chunks_of_any_length_give_the_same_cache(make: Make, case: golden.Golden) -> None:
    bundle, backend, _ = make()
    spec = bundle.manifest.model
    embeddings = case.arrays["hidden_states"][0].astype(np.float32)
    angles = MultimodalRotary(spec.mrope_section, spec.rope_theta).angles(case.arrays["position_ids"][:, 0])
    last = []
    for chunk in (len(embeddings), 13, 1):
        cache = new_cache(backend, len(embeddings))
        for start in range(0, len(embeddings), chunk):
            part = slice(start, start + chunk)
            tokens = embeddings[part]
            logits = backend.decode(
                tokens, Angles(angles.cos[part], angles.sin[part]), start, np.array([len(tokens) - 1]), cache
            )
        last.append(np.asarray(logits)[0])
    np.testing.assert_allclose(last[1], last[0], atol=1e-4)
    np.testing.assert_allclose(last[2], last[0], atol=1e-4)


def test_a_dropped_cache_gives_its_memory_back(make: Make) -> None:
    bundle, backend, device = make()
    step(bundle, backend, 0, new_cache(backend, 16))
    gc.collect()
    before = device.free_bytes()
    cache: SlotCache | None = new_cache(backend, 4096)
    for index in range(6):
        step(bundle, backend, index, cache)
    assert device.free_bytes() < before
    del cache
    gc.collect()
    assert device.free_bytes() == before


def test_a_cache_too_large_is_refused_and_nothing_is_lost(make: Make) -> None:
    bundle, backend, device = make()
    cache = new_cache(backend, 16)
    expected = np.asarray(step(bundle, backend, 0, cache))
    device.memory = device.memory - device.free_bytes() + 1000
    with pytest.raises(NotPossibleHere, match="full"):
        new_cache(backend, 4096)
    np.testing.assert_array_equal(np.asarray(step(bundle, backend, 0, cache)), expected)


def test_operator_times_are_each_runs_and_nothing_is_recorded(make: Make) -> None:
    bundle, _, _ = make()
    device = NumpyDevice()
    backend = backend_of(bundle, device, profile=True)
    cache = new_cache(backend, 64)
    for index in range(5):
        step(bundle, backend, index, cache)
    runs = backend.operator_times()["decoder"]
    assert len(runs) == 5 and device.launches == 0
    assert all([node.name for node in run] == [node.name for node in runs[0]] for run in runs)
    assert {node.tokens for run in runs for node in run} == {1}
    named = joined({"decoder": runs})
    assert {"layer 0, attention", "layer 0, DualPathMoE", "head"} <= {operator.layer for operator in named}
    assert {operator.phase for operator in named} == {"decode"} and all(operator.calls == 5 for operator in named)
    assert GpuBackend.operator_times(make()[1]) == {}
