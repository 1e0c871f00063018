"""Studies over gRPC on the real engine: the text of one call, read ahead, frames withdrawn, clients kept apart, bounds kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.client.wire.requests import ReportRequest
from echovlm_edge.runtime.contracts.errors import InvalidInput, NotFound, Unavailable
from echovlm_edge.runtime.contracts.request import Frame, ImageInput, Priority, Sampling
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.serving.access.clients import Client
from echovlm_edge.runtime.serving.studies import Studies, StudyLimits
from echovlm_edge.runtime.serving.transport.server import ServerOptions
from tests.support.dicom_files import png, shipped
from tests.support.questions import result
from tests.support.running_server import Running, running

OPTIONS = pb.GenerationOptions(include_token_ids=True, sampling=pb.Sampling(max_new_tokens=24))
CINE = pb.Image(data=shipped("examples_ybr_color.dcm"), frames=pb.FrameSelection(evenly_spaced=6))
PICTURES = [pb.Image(data=png(84 + 28 * index, 84)) for index in range(4)]


@pytest.fixture(scope="module")
def served(golden_bundle: Path) -> Iterator[Running]:
    options = ServerOptions(studies=StudyLimits(max_studies=4, max_frames=6, max_bytes=300_000))
    with running(golden_bundle, options) as server:
        yield server


@pytest.fixture(scope="module")
def forgetful(golden_bundle: Path) -> Iterator[Running]:
    """Keeps nothing from one call to the next: what a call's text is by itself."""
    with running(golden_bundle, engine_options=EngineOptions(1, 0, 0)) as server:
        yield server


@pytest.fixture
def study(served: Running) -> Iterator[str]:
    name = served.stub.BeginStudy(pb.BeginStudyRequest()).id
    yield name
    try:
        served.stub.EndStudy(pb.EndStudyRequest(study=name))
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.NOT_FOUND


def settled(served: Running) -> None:
    """Wait until nothing is read in the background any more."""
    deadline, calm = time.monotonic() + 20, 0
    while calm < 5:
        assert time.monotonic() < deadline
        scheduler = served.engine.stats().scheduler
        idle = scheduler.busy == scheduler.waiting == 0 and served.engine._current._encoder._job_started is None
        calm = calm + 1 if idle else 0
        time.sleep(0.02)


def add(served: Running, study: str, *images: pb.Image) -> list[pb.AddedImage]:
    return [served.stub.AddImage(pb.AddImageRequest(study=study, image=image)) for image in images]


def test_the_text_is_that_of_the_same_images_in_one_call(served: Running, forgetful: Running, study: str) -> None:
    added = add(served, study, *PICTURES[:3])
    assert [image.number for image in added] == [1, 2, 3]
    assert added[0].study_tokens < added[1].study_tokens < added[2].study_tokens
    ahead = result(served.stub.GenerateReport(pb.GenerateReportRequest(study=study, options=OPTIONS)))
    at_once = result(forgetful.stub.GenerateReport(pb.GenerateReportRequest(images=PICTURES[:3], options=OPTIONS)))
    assert list(ahead.token_ids) == list(at_once.token_ids) and ahead.text == at_once.text
    assert ahead.usage.prompt_tokens == at_once.usage.prompt_tokens and at_once.usage.reused_tokens == 0


def test_what_was_added_ahead_is_read_when_it_is_asked_about(served: Running, study: str) -> None:
    add(served, study, *(pb.Image(data=png(90 + 28 * index, 118)) for index in range(4)))
    settled(served)
    encoded = served.engine.stats().images.misses
    answer = result(served.stub.GenerateReport(pb.GenerateReportRequest(study=study, options=OPTIONS)))
    assert served.engine.stats().images.misses == encoded, "an image was encoded again"
    assert answer.usage.reused_tokens > answer.usage.image_tokens - 16, "images were prefilled again"


def test_a_withdrawn_image_leaves_no_trace(served: Running, forgetful: Running, study: str) -> None:
    _, second, third = add(served, study, *PICTURES[:3])
    settled(served)
    served.stub.WithdrawImage(pb.WithdrawImageRequest(study=study, number=second.number))
    (fourth,) = add(served, study, PICTURES[3])
    assert fourth.number == third.number + 1, "a number was used twice"
    asked = pb.DiagnoseRequest(study=study, options=OPTIONS)
    without = pb.DiagnoseRequest(images=[PICTURES[0], PICTURES[2], PICTURES[3]], options=OPTIONS)
    assert result(served.stub.Diagnose(asked)).token_ids == result(forgetful.stub.Diagnose(without)).token_ids
    with pytest.raises(grpc.RpcError, match="no image 2") as refused:
        served.stub.WithdrawImage(pb.WithdrawImageRequest(study=study, number=second.number))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]


def test_a_calls_own_images_come_after_the_studys(served: Running, forgetful: Running, study: str) -> None:
    add(served, study, PICTURES[0])
    asked = pb.AnswerQuestionRequest(question="What?", study=study, images=[PICTURES[1]], options=OPTIONS)
    same = pb.AnswerQuestionRequest(question="What?", images=PICTURES[:2], options=OPTIONS)
    assert result(served.stub.AnswerQuestion(asked)).token_ids == result(forgetful.stub.AnswerQuestion(same)).token_ids


def test_a_cine_adds_its_frames(served: Running, study: str) -> None:
    cine = pb.Image(data=shipped("examples_ybr_color.dcm"), frames=pb.FrameSelection(evenly_spaced=2))
    (added,) = add(served, study, cine)
    assert added.frames == 2 and added.study_tokens > 100


@pytest.mark.parametrize(
    ("image", "code", "sentence"),
    [
        (pb.Image(data=b"text"), grpc.StatusCode.INVALID_ARGUMENT, "of no known kind"),
        (CINE, grpc.StatusCode.RESOURCE_EXHAUSTED, "memory for studies is full"),
    ],
)
def test_an_image_that_cannot_be_added_changes_nothing(
    served: Running, study: str, image: pb.Image, code: grpc.StatusCode, sentence: str
) -> None:
    with pytest.raises(grpc.RpcError, match=sentence) as refused:
        add(served, study, image)
    assert refused.value.code() is code  # type: ignore[attr-defined]
    assert add(served, study, PICTURES[0])[0].number == 1


def test_a_study_has_bounds(served: Running, study: str) -> None:
    add(served, study, *[PICTURES[0]] * 6)
    with pytest.raises(grpc.RpcError, match="more than the maximum of 6"):
        add(served, study, PICTURES[0])
    others = [served.stub.BeginStudy(pb.BeginStudyRequest()).id for _ in range(3)]
    with pytest.raises(grpc.RpcError, match="4 of your studies are open") as refused:
        served.stub.BeginStudy(pb.BeginStudyRequest())
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
    for other in others:
        served.stub.EndStudy(pb.EndStudyRequest(study=other))


def test_an_ended_or_empty_study_is_one_sentence(served: Running, study: str) -> None:
    with pytest.raises(grpc.RpcError, match="no image yet"):
        result(served.stub.GenerateReport(pb.GenerateReportRequest(study=study)))
    served.stub.EndStudy(pb.EndStudyRequest(study=study))
    for ask in (
        lambda: add(served, study, PICTURES[0]),
        lambda: result(served.stub.GenerateReport(pb.GenerateReportRequest(study=study))),
        lambda: served.stub.EndStudy(pb.EndStudyRequest(study=study)),
    ):
        with pytest.raises(grpc.RpcError, match="There is no such study") as refused:
            ask()
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]


def test_studies_belong_to_clients_and_expire() -> None:
    now = [0.0]
    studies = Studies(
        StudyLimits(expires_after_seconds=60), lambda frames, client, scope, stopped: None, lambda: now[0]
    )
    mine, other = Client("mine"), Client("other")
    name = studies.begin(mine)
    for act in (studies.frames, studies.end):
        with pytest.raises(NotFound):
            act(other, name)
    now[0] = 50
    assert studies.frames(mine, name) == (), "a use makes it last"
    now[0] = 109
    studies.forget_old()
    assert studies.counts() == (1, 0)
    now[0] = 111
    with pytest.raises(NotFound):
        studies.frames(mine, name)
    assert studies.counts() == (0, 0)


def test_a_server_that_shuts_down_takes_no_new_images_and_reads_nothing_ahead() -> None:
    prepared = list[object]()
    studies = Studies(StudyLimits(), lambda frames, client, stopped: prepared.append(frames))
    mine, frame = Client("mine"), Frame(np.zeros((4, 4, 3), np.uint8), "one")
    name = studies.begin(mine)
    first, second = (studies.add(mine, name, [frame], len) for _ in range(2))
    studies.close()
    studies._background.shutdown(wait=True)
    prepared.clear()
    with pytest.raises(Unavailable, match="shutting down"):
        studies.add(mine, name, [frame], len)
    with pytest.raises(Unavailable, match="shutting down"):
        studies.begin(mine)
    studies.withdraw(mine, name, first.number)
    studies.prepare_all()  # as an engine that takes over does
    assert studies.frames(mine, name) == second.frames[1:], "a call that runs still has its images"
    studies.end(mine, name)
    studies.close()
    assert prepared == []


def test_a_study_outlives_a_swap_of_bundles(
    golden_bundle: Path, build_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    link = tmp_path / "bundle"
    link.symlink_to(golden_bundle)
    with running(link) as served:
        name = served.stub.BeginStudy(pb.BeginStudyRequest()).id
        add(served, name, *PICTURES[:2])
        link.unlink()
        link.symlink_to(build_bundle(precision="int4"))
        assert served.engine.swap()
        answer = result(served.stub.GenerateReport(pb.GenerateReportRequest(study=name, options=OPTIONS)))
        at_once = result(served.stub.GenerateReport(pb.GenerateReportRequest(images=PICTURES[:2], options=OPTIONS)))
        assert answer.token_ids == at_once.token_ids
        assert answer.bundle_id == served.stub.GetModelInfo(pb.GetModelInfoRequest()).bundle_id


def test_the_clients_own_methods(served: Running) -> None:
    pictures = [ImageInput(png(90, 70), name="first.png"), ImageInput(png(70, 90), name="second.png")]
    sampling = Sampling(max_new_tokens=12)
    with Connection(served.server.address) as client:
        study = client.begin_study()
        numbers = [client.add_image(study, picture).number for picture in pictures]
        with pytest.raises(InvalidInput, match=r"^third\.png is of no known kind"):
            client.add_image(study, ImageInput(b"text", name="third.png"))
        client.withdraw_image(study, numbers[0])
        *_, ahead = client.generate(ReportRequest(study=study, sampling=sampling, priority=Priority.BATCH))
        *_, at_once = client.generate(ReportRequest(images=pictures[1:], sampling=sampling))
        assert ahead.result.text == at_once.result.text
        client.end_study(study)
        with pytest.raises(NotFound):
            list(client.generate(ReportRequest(study=study)))
