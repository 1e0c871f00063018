"""A call's pictures take what the model sees of them, and none is decoded for a call that asks for too much or is gone."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import grpc
import psutil
import pytest

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.contracts.errors import InvalidInput, NotFound
from echovlm_edge.runtime.contracts.request import (
    Finished,
    FinishReason,
    Frame,
    GenerationRequest,
    ImageInput,
    Resolution,
    Sampling,
    Turn,
)
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.imaging.decoder import Asker, LocalDecoder
from echovlm_edge.runtime.imaging.image_file import Measured
from echovlm_edge.runtime.imaging.sandbox.sandbox import DecodeSandbox, SandboxLimits
from tests.support.decoding import bomb
from tests.support.dicom_files import png
from tests.support.running_server import running
from tests.support.waiting import wait_for


class Counting:
    """A decoder that counts what it is asked."""

    def __init__(self) -> None:
        self.measured = self.decoded = 0

    def measure(self, image: ImageInput, resolution: Resolution, asker: Asker) -> Measured:
        self.measured += 1
        return LocalDecoder().measure(image, resolution)

    def decode(self, image: ImageInput, measured: Measured, asker: Asker) -> list[Frame]:
        self.decoded += 1
        return LocalDecoder().decode(image, measured)


@pytest.fixture(scope="module")
def opened(golden_bundle: Path) -> Iterator[tuple[ReportEngine, Counting]]:
    counting = Counting()
    engine = ReportEngine.open(golden_bundle, threads=1, max_sequence=256, image_decoder=counting)
    yield engine, counting
    engine.close()


def test_nothing_is_decoded_for_a_call_that_the_context_does_not_hold(opened: tuple[ReportEngine, Counting]) -> None:
    engine, counting = opened
    counting.measured = counting.decoded = 0
    images = tuple(ImageInput(png(640, 480, seed), name=f"image {seed}") for seed in range(10))
    with pytest.raises(InvalidInput, match=r"The prompt takes [\d]+ tokens .* the context holds"):
        list(engine.generate(GenerationRequest("Why?", images)))
    with pytest.raises(InvalidInput, match="the context holds"):
        frames = engine.read_image(images[0])
        engine.read_image(images[1], frames * 10)
    assert (counting.measured, counting.decoded) == (12, 1)


def test_replies_are_not_searched_after_images_that_the_context_does_not_hold(
    opened: tuple[ReportEngine, Counting], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight turns of eight images; each search hashes all tokens before it."""
    engine, counting = opened
    counting.decoded = 0
    find = Mock()
    monkeypatch.setattr(engine._replies, "find", find)
    turn = Turn("Why?", tuple(ImageInput(png(640, 480, seed)) for seed in range(8)), reply="So.")
    with pytest.raises(InvalidInput, match=r"images take [\d]+ tokens, the context holds 256: send fewer"):
        list(engine.generate(GenerationRequest("Where?", earlier=(turn,) * 8)))
    assert counting.decoded == 0 and not find.called


def test_a_call_that_is_gone_decodes_nothing_more(opened: tuple[ReportEngine, Counting]) -> None:
    engine, counting = opened
    counting.decoded = 0
    images = tuple(ImageInput(png(640, 480, seed)) for seed in range(4))
    *_, last = engine.generate(GenerationRequest("Why?", images), lambda: counting.decoded == 2)
    assert isinstance(last, Finished) and last.finish_reason is FinishReason.CANCELLED
    assert counting.decoded == 2


def test_large_pictures_take_no_more_memory_than_small_ones(golden_bundle: Path) -> None:
    sandbox = DecodeSandbox(SandboxLimits(processes=1, seconds=120))
    engine = ReportEngine.open(golden_bundle, threads=1, image_decoder=sandbox)
    warm, large = ImageInput(png(64, 64)), ImageInput(bomb(8_000, 8_000))  # of 192 MB each, as they are
    list(engine.generate(GenerationRequest("Why?", (warm,), Sampling(1))))
    before, most, done = psutil.Process().memory_info().rss, [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            most[0] = max(most[0], psutil.Process().memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    *_, last = engine.generate(GenerationRequest("Why?", (large,) * 3, Sampling(1)))
    done.set()
    watching.join()
    engine.close()
    sandbox.close()
    assert isinstance(last, Finished) and last.image_tokens == 3 * 36
    assert most[0] - before < 100e6, f"{(most[0] - before) / 1e6:.0f} MB more"


def with_resolution(bundle: Path, folder: Path, max_pixels: int) -> Path:
    """Make the same bundle for frames of another size."""
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["preprocess"]["max_pixels"] = max_pixels
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return folder


def test_a_study_is_not_asked_about_with_frames_of_another_bundles_size(golden_bundle: Path, tmp_path: Path) -> None:
    link = tmp_path / "bundle"
    link.symlink_to(golden_bundle)
    with running(link) as served:
        study = served.stub.BeginStudy(pb.BeginStudyRequest()).id
        image = pb.Image(data=png(640, 480))
        served.stub.AddImage(pb.AddImageRequest(study=study, image=image))
        link.unlink()
        link.symlink_to(with_resolution(golden_bundle, tmp_path / "other", 56 * 56))
        assert served.engine.swap()
        calls: list[Callable[[], object]] = [
            lambda: list(served.stub.GenerateReport(pb.GenerateReportRequest(study=study))),
            lambda: served.stub.AddImage(pb.AddImageRequest(study=study, image=image)),
        ]
        for call in calls:
            with pytest.raises(grpc.RpcError, match="begin a new study") as refused:
                call()
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]
        *_, last = served.stub.GenerateReport(pb.GenerateReportRequest(images=[image]))
        assert last.result.usage.image_tokens == 2


def test_frames_for_another_engine_are_refused(opened: tuple[ReportEngine, Counting]) -> None:
    engine, _ = opened
    (frame,) = engine.read_image(ImageInput(png(640, 480)))
    other = Frame(frame.pixels, frame.name, Resolution(28, 784, 1_003_520))
    for ask in (
        lambda: list(engine.generate(GenerationRequest("Why?", frames=(other,)))),
        lambda: engine.prompt_tokens([other]),
    ):
        with pytest.raises(NotFound, match="begin a new study"):
            ask()


def test_cancelled_calls_keep_no_decoder_and_no_place(golden_bundle: Path) -> None:
    """Forty calls with a slow file, of both kinds, that are given up: the next one does not wait for them."""
    sandbox = DecodeSandbox(SandboxLimits(processes=2, seconds=60))
    slow = pb.Image(data=bomb(8_000, 8_000))
    with running(lambda: ReportEngine.open(golden_bundle, threads=1, image_decoder=sandbox)) as served:
        study = served.stub.BeginStudy(pb.BeginStudyRequest()).id
        calls = [served.stub.GenerateReport(pb.GenerateReportRequest(images=[slow] * 4)) for _ in range(20)]
        calls += [served.stub.AddImage.future(pb.AddImageRequest(study=study, image=slow)) for _ in range(20)]
        wait_for(lambda: len(sandbox._waiting) > 20)
        for call in calls:
            call.cancel()
        wait_for(lambda: served.server.admission.inside == 0)
        assert len(sandbox._waiting) == 0 and sandbox._busy == 0
        *_, last = served.stub.GenerateReport(pb.GenerateReportRequest(images=[pb.Image(data=png(64, 64))]))
        assert last.result.text is not None
        assert not any(psutil.Process(pid).children() for pid in sandbox.pids())
    sandbox.close()
