"""A GPU serves as a CPU does: studies are read ahead, several reports are one step, and images are encoded meanwhile."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from echovlm_edge.runtime.backends import SlotMemory
from echovlm_edge.runtime.backends.gpu import cuda_driver
from echovlm_edge.runtime.bundle.manifest import MANIFEST, PREFILL_CHUNK, Bundle
from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.contracts.request import Frame, GenerationRequest, ImageInput, Sampling
from echovlm_edge.runtime.engine.caching.reuse import BLOCK
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.prompting.rotary import vision_angles
from tests.backends.test_gpu_slots import token
from tests.support import golden
from tests.support.dicom_files import png
from tests.support.numpy_cuda import NumpyDriver, NumpyTensorRT
from tests.support.numpy_device import NumpyDevice
from tests.support.tensorrt_bundles import backend_of, tensorrt_like
from tests.support.waiting import wait_for
from tests.support.watched_engine import Call, WatchedBackend

BuildBundle = Callable[..., Path]
STUDIES, FRAMES = 8, 7
OPTIONS = EngineOptions(STUDIES, prefix_bytes=64 << 20, ignore_stop=True, drafting=False)


@pytest.fixture(scope="module")
def bundle(build_bundle: BuildBundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The golden checkpoint, which takes frames of 640 x 480 as they are."""
    made = tensorrt_like(build_bundle(target="portable"), tmp_path_factory.mktemp("trt") / "bundle", batch=STUDIES)
    manifest = json.loads((made.path / MANIFEST).read_text(encoding="utf-8"))
    manifest["preprocess"]["max_pixels"] = 640 * 480
    (made.path / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return Bundle(made.path)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> NumpyDevice:
    device = NumpyDevice(memory=4 << 30)
    module = NumpyTensorRT(device, bundle.manifest.limits.max_sequence, batch=STUDIES, chunk=PREFILL_CHUNK)
    monkeypatch.setattr(cuda_driver, "_driver", lambda: NumpyDriver(device))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    return device


@pytest.fixture
def watched(bundle: Bundle, device: NumpyDevice) -> Iterator[tuple[ReportEngine, WatchedBackend]]:
    backend = WatchedBackend(bundle, OPTIONS.slot_memory(bundle.manifest, None))
    engine = ReportEngine(bundle, backend, options=OPTIONS)
    yield engine, backend
    engine.close()


def test_eight_studies_are_read_ahead_and_answered_in_one_step_a_token(
    watched: tuple[ReportEngine, WatchedBackend], device: NumpyDevice
) -> None:
    """Seven frames each, as many tokens as seven of 640 x 480; only the text is left to read once somebody asks."""
    engine, backend = watched
    pictures = [engine.read_image(ImageInput(png(640 - 4 * number, 480)))[0] for number in range(FRAMES)]
    studies: list[list[Frame]] = [[*pictures[number:], *pictures[:number]] for number in range(FRAMES)]
    studies.append(pictures[::-1])
    for frames in studies:
        engine.prepare(frames, "cart", "", lambda: False)
    read = [engine.prompt_tokens(frames) for frames in studies]
    assert min(read) > FRAMES * 350 and engine.stats().prefixes.entries == STUDIES
    assert sum(backend.chunks) > STUDIES * FRAMES * 350

    backend.chunks.clear()
    backend.steps.clear()
    launched = device.launches
    backend.gate.clear()
    requests = [
        GenerationRequest(f"Is it {number}?", frames=tuple(frames), sampling=Sampling(20), client="cart")
        for number, frames in enumerate(studies)
    ]
    calls = [Call(engine, request) for request in requests]
    wait_for(lambda: engine.stats().scheduler.busy + engine.stats().scheduler.waiting == STUDIES)
    backend.gate.set()
    results = [call.result() for call in calls]
    texts = [result.prompt_tokens - result.reused_tokens for result in results]
    assert max(texts) < 50 + BLOCK and sum(backend.chunks) == sum(texts)
    assert max(backend.steps) == STUDIES and device.launches - launched == len(backend.steps)
    for request, result in zip(requests[::3], results[::3], strict=True):
        (*_, alone) = engine.generate(replace(request, scope="another"))
        assert alone.token_ids == result.token_ids  # type: ignore[union-attr]


def test_a_gpu_serves_as_many_reports_as_are_asked_for_or_refuses(bundle: Bundle, device: NumpyDevice) -> None:
    for asked, served in ((None, STUDIES), (1, 1), (5, 5), (STUDIES, STUDIES)):
        engine = ReportEngine.open(bundle.path, max_sequence=64, options=EngineOptions(asked, prefix_bytes=0))
        assert engine.stats().scheduler.slots == served
        engine.close()
    with pytest.raises(InvalidInput, match="--slots 9 is more than the 8 that the bundle decodes together"):
        ReportEngine.open(bundle.path, options=EngineOptions(STUDIES + 1))


def test_a_thousand_turns_while_images_are_encoded(bundle: Bundle) -> None:
    """The encoder's stream and the decoder's never meet, not even where a step is recorded."""
    case, spec = golden.load("one_image_en"), bundle.manifest.model
    (patches,), (grid,) = case.patches(), case.grids
    angles = vision_angles(grid, spec.merge_size, spec.vision_head_dim)
    backend = backend_of(bundle, NumpyDevice())
    expected_image = backend.project(backend.encode(patches, angles))
    slots = backend.new_slots(SlotMemory(4, 40))
    alone = [[np.array(backend.turn([token(bundle, backend, slot, at)])[0][0]) for at in range(5)] for slot in slots]

    backend = backend_of(bundle, NumpyDevice())
    ended, failures, encoded = threading.Event(), list[str](), list[int]()

    def encode() -> None:
        while not ended.is_set():
            image = backend.project(backend.encode(patches, angles))
            encoded.append(len(image))
            if not np.array_equal(image, expected_image):
                failures.append("an image is not itself")

    encoder = threading.Thread(target=encode, daemon=True)
    encoder.start()
    random = np.random.default_rng(0)
    try:
        for turn in range(1000):
            if turn % 100 == 0:  # new slots: their steps are recorded while an image is encoded
                slots, filled = backend.new_slots(SlotMemory(4, 40)), [0] * 4
            together = slots[: random.integers(1, 5)]
            filled = [0 if at == 5 else at for at in filled]
            rows = [token(bundle, backend, slot, filled[slot.number]) for slot in together]
            for slot, (logits,) in zip(together, backend.turn(rows), strict=True):
                np.testing.assert_allclose(np.array(logits), alone[slot.number][filled[slot.number]], atol=1e-4)
                filled[slot.number] += 1
    finally:
        ended.set()
        encoder.join(60)
    assert encoded and not failures and not encoder.is_alive()
