"""The bound on a frame's tokens: of the bundle, lowered by a server, a study or a call; two bounds of one picture are two pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from rich.console import Console

from echovlm.v1 import report_pb2 as pb
from echovlm_edge import InvalidInput, ReportClient
from echovlm_edge.export.build_options import BuildOptions
from echovlm_edge.export.bundle.planned_bundle import bundle_shape, open_checkpoint, plan
from echovlm_edge.export.graph.sketch import sketched_parts
from echovlm_edge.export.progress import Progress
from echovlm_edge.runtime.contracts.errors import ImageTokensOutOfRange
from echovlm_edge.runtime.contracts.request import Finished, GenerationRequest, ImageInput, Sampling
from echovlm_edge.runtime.contracts.statuses import reason_of
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from tests.support import golden
from tests.support.dicom_files import png
from tests.support.running_server import Running, running

PICTURE = png(640, 480, 7)
FULL, LOW = None, 20  # the golden bundle's own bound is 48 tokens, which this picture has as 8 x 6
TOKENS = {FULL: 48, LOW: 5 * 3}


@pytest.fixture(scope="module")
def served(golden_bundle: Path) -> Iterator[Running]:
    with running(golden_bundle) as server:
        yield server


def written(engine: ReportEngine, bound: int | None) -> Finished:
    image = ImageInput(PICTURE, image_tokens=bound)
    *_, last = engine.generate(GenerationRequest("Why?", (image,), Sampling(8)))
    assert isinstance(last, Finished) and last.image_tokens == TOKENS[bound] == last.pictures[0].tokens
    return last


@pytest.fixture(scope="module")
def cold(golden_bundle: Path) -> dict[int | None, tuple[int, ...]]:
    """What an engine writes at each bound that has seen nothing before."""
    found = {}
    for bound in (FULL, LOW):
        engine = ReportEngine.open(golden_bundle, threads=1)
        found[bound] = written(engine, bound).token_ids
        engine.close()
    return found


@pytest.mark.parametrize("order", [(FULL, LOW), (LOW, FULL)], ids=["lower second", "lower first"])
def test_a_picture_at_two_bounds_is_never_mixed(
    golden_bundle: Path, cold: dict[int | None, tuple[int, ...]], order: tuple[int | None, int | None]
) -> None:
    engine = ReportEngine.open(golden_bundle, threads=1)
    for bound in order:
        assert written(engine, bound).token_ids == cold[bound]
    for bound in order:  # now from the caches, which hold both
        again = written(engine, bound)
        assert again.token_ids == cold[bound] and again.reused_tokens >= TOKENS[bound] // 16 * 16
    assert engine.stats().images.entries == 2
    engine.close()


def test_frames_read_ahead_keep_their_bound(golden_bundle: Path, cold: dict[int | None, tuple[int, ...]]) -> None:
    engine = ReportEngine.open(golden_bundle, threads=1)
    for bound in (LOW, FULL):
        frames = engine.read_image(ImageInput(PICTURE, image_tokens=bound))
        engine.prepare(frames, "", "", lambda: False)
        *_, last = engine.generate(GenerationRequest("Why?", frames=tuple(frames), sampling=Sampling(8)))
        assert isinstance(last, Finished) and last.token_ids == cold[bound] and last.reused_tokens > 0
    engine.close()


def test_a_server_lowers_the_bound(golden_bundle: Path, cold: dict[int | None, tuple[int, ...]]) -> None:
    engine = ReportEngine.open(golden_bundle, threads=1, options=EngineOptions(image_tokens=LOW))
    assert engine.info.image_tokens == (4, LOW) and engine.info.max_pixels == LOW * 28 * 28
    *_, last = engine.generate(GenerationRequest("Why?", (ImageInput(PICTURE),), Sampling(8)))
    assert isinstance(last, Finished) and last.image_tokens == TOKENS[LOW] and last.token_ids == cold[LOW]
    with pytest.raises(ImageTokensOutOfRange, match="ask for 4 to 20 tokens"):
        list(engine.generate(GenerationRequest("Why?", (ImageInput(PICTURE, image_tokens=LOW + 1),))))
    engine.close()


def test_a_build_lowers_the_bound_of_its_bundle(tmp_path: Path) -> None:
    options = BuildOptions(golden.CHECKPOINT, tmp_path / "bundle", image_tokens=LOW)
    with Progress(Console(quiet=True)) as progress:
        planned = plan(options, open_checkpoint(options, progress), sketched_parts)
    assert planned.settings.max_pixels == LOW * 28 * 28
    assert bundle_shape(options, planned).widths.frame_patches == 4 * LOW


@pytest.mark.parametrize("bound", [49, 3])
def test_a_bound_outside_the_checkpoints_is_refused_everywhere(
    build_bundle: Callable[..., Path], golden_bundle: Path, served: Running, bound: int
) -> None:
    calls: list[Callable[[], object]] = [
        lambda: build_bundle(image_tokens=bound),
        lambda: ReportEngine.open(golden_bundle, threads=1, options=EngineOptions(image_tokens=bound)),
    ]
    for call in calls:
        with pytest.raises(ImageTokensOutOfRange, match=f"image_tokens {bound} .* ask for 4 to 48 tokens"):
            call()
    asked: list[Callable[[], object]] = [
        lambda: list(served.stub.GenerateReport(pb.GenerateReportRequest(image_tokens=bound))),
        lambda: list(served.stub.AnswerQuestion(pb.AnswerQuestionRequest(question="Why?", image_tokens=bound))),
        lambda: served.stub.BeginStudy(pb.BeginStudyRequest(image_tokens=bound)),
    ]
    for ask in asked:
        with pytest.raises(grpc.RpcError, match="ask for 4 to 48 tokens") as refused:
            ask()
        error: grpc.Call = refused.value  # type: ignore[assignment]
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert reason_of(error.trailing_metadata()) == "IMAGE_TOKENS_OUT_OF_RANGE"


def test_a_client_chooses_the_bound_of_a_call_and_of_a_study(served: Running) -> None:
    limits = served.stub.GetModelInfo(pb.GetModelInfoRequest()).limits
    assert (limits.min_image_tokens, limits.max_image_tokens) == (4, 48)
    short = Sampling(2)
    with ReportClient(served.server.address) as client:
        assert client.report(PICTURE, sampling=short, image_tokens=LOW).pictures[0].tokens == TOKENS[LOW]
        assert client.report(PICTURE, sampling=short).pictures[0].tokens == TOKENS[FULL]
        with client.study(image_tokens=LOW) as study:
            assert study.add(PICTURE).pictures[0].tokens == TOKENS[LOW]
            shown = study.report(PICTURE, sampling=short, image_tokens=LOW).pictures
            assert [picture.tokens for picture in shown] == [TOKENS[LOW]] * 2
            with pytest.raises(InvalidInput, match="is not the study's bound"):
                study.report(sampling=short, image_tokens=LOW - 1)
        with client.study() as study:
            study.add(PICTURE)
            with pytest.raises(InvalidInput, match="is not the study's bound"):
                study.report(sampling=short, image_tokens=LOW)
        with pytest.raises(ImageTokensOutOfRange):
            client.report(PICTURE, image_tokens=1000)
