"""A client at its limit of studies: its longest unused one gives up its place, and it can list and end its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2

from echovlm.v1 import report_pb2 as pb
from echovlm.v1 import report_pb2_grpc
from echovlm_edge.runtime.client.wire.refusals import error_of
from echovlm_edge.runtime.contracts.errors import Busy, NotFound, StudyReplaced
from echovlm_edge.runtime.contracts.request import Event, Frame, GenerationRequest
from echovlm_edge.runtime.contracts.statuses import DETAILS
from echovlm_edge.runtime.serving.access.clients import ANYBODY, Client
from echovlm_edge.runtime.serving.studies import Studies, StudyLimits
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions
from tests.support.decoding_engine import DecodingEngine
from tests.support.dicom_files import png

MINE, OTHER = Client("mine", max_studies=2), Client("other")
MINUTE = StudyLimits().replaceable_after_seconds
FRAME = Frame(np.zeros((4, 4, 3), np.uint8), "one")


class Clock:
    """Seconds that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def studies_of(clock: Clock, **limits: float) -> Studies:
    return Studies(StudyLimits(**limits), lambda frames, client, scope, stopped: None, clock)  # type: ignore[arg-type]


def test_a_dead_carts_study_gives_up_its_place(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    studies = studies_of(clock)
    dead, alive = studies.begin(MINE), studies.begin(MINE)
    clock.now += MINUTE
    studies.frames(MINE, alive)
    with caplog.at_level(logging.WARNING):
        new = studies.begin(MINE)
    assert "a study of mine was ended for a newer one of the same client; it was unused for 60 s" in caplog.text
    assert not any(name in caplog.text for name in (dead, alive, new)), "an id is a secret"
    with pytest.raises(StudyReplaced, match="ended because its client needed room for a newer one"):
        studies.frames(MINE, dead)
    studies.frames(MINE, alive)
    studies.frames(MINE, new)


def test_a_study_that_was_just_used_keeps_its_place(clock: Clock) -> None:
    studies = studies_of(clock)
    studies.begin(MINE)
    clock.now += 40
    studies.begin(MINE)
    with pytest.raises(Busy, match=r"2 of your studies are open, .* all were used in the last 60 s") as refused:
        studies.begin(MINE)
    assert refused.value.retry_seconds == 10
    clock.now += 15
    with pytest.raises(Busy) as refused:
        studies.begin(MINE)
    assert refused.value.retry_seconds == 5, "when the first has been unused for a minute"


def test_a_study_that_a_call_works_on_keeps_its_place_and_does_not_expire(clock: Clock) -> None:
    studies = studies_of(clock, expires_after_seconds=1800)
    first, second = studies.begin(MINE), studies.begin(MINE)
    with studies.use(MINE, first), studies.use(MINE, second):
        clock.now += 3600
        studies.forget_old()
        with pytest.raises(Busy):
            studies.begin(MINE)
    clock.now += MINUTE - 1
    with pytest.raises(Busy):
        studies.begin(MINE)
    clock.now += 1
    studies.begin(MINE)


def test_nobody_loses_a_study_to_another_client(clock: Clock) -> None:
    studies = studies_of(clock, max_studies=3)
    theirs = [studies.begin(OTHER) for _ in range(2)]
    studies.begin(MINE)
    clock.now += 10 * MINUTE
    with pytest.raises(Busy, match="3 studies are open"):
        studies.begin(MINE)
    for name in theirs:
        studies.frames(OTHER, name)


def test_the_memory_of_a_dead_carts_studies_is_given_up_too(clock: Clock) -> None:
    size = FRAME.pixels.nbytes
    studies = studies_of(clock, max_bytes=3 * size)
    dead = studies.begin(MINE)
    for _ in range(2):
        studies.add(MINE, dead, [FRAME], len)
    theirs = studies.begin(OTHER)
    studies.add(OTHER, theirs, [FRAME], len)
    alive = studies.begin(MINE)
    with pytest.raises(Busy, match="memory for studies is full"):
        studies.add(MINE, alive, [FRAME], len)
    clock.now += MINUTE
    with pytest.raises(Busy, match="memory for studies is full"):
        studies.add(MINE, alive, [FRAME] * 3, len)
    studies.frames(MINE, dead)  # it would not have sufficed
    clock.now += MINUTE
    studies.add(MINE, alive, [FRAME], len)
    with pytest.raises(StudyReplaced):
        studies.frames(MINE, dead)
    studies.frames(OTHER, theirs)


def test_the_reason_is_forgotten_with_time_and_is_told_to_its_client_alone(clock: Clock) -> None:
    studies = studies_of(clock, expires_after_seconds=600)
    ended = studies.begin(MINE)
    clock.now += MINUTE
    for _ in range(2):
        studies.begin(MINE)
    with pytest.raises(NotFound) as refused:
        studies.frames(OTHER, ended)
    assert type(refused.value) is NotFound
    clock.now += 601
    with pytest.raises(NotFound) as refused:
        studies.frames(MINE, ended)
    assert type(refused.value) is NotFound


def test_a_client_lists_its_own_studies_by_names_that_only_end_them(clock: Clock) -> None:
    studies = studies_of(clock)
    first = studies.begin(MINE)
    clock.now += 5
    second = studies.begin(MINE)
    studies.begin(OTHER)
    studies.add(MINE, first, [FRAME], len)
    clock.now += 7
    with studies.use(MINE, second):
        listed = studies.listed(MINE)
    assert [(study.age_seconds, study.unused_seconds, study.in_use, study.images) for study in listed] == [
        (12, 7, False, 1),
        (7, 0, True, 0),
    ]
    assert listed[0].bytes == FRAME.pixels.nbytes
    assert not {study.id for study in listed} & {first, second}
    for refused in (lambda: studies.frames(MINE, listed[0].id), lambda: studies.end(OTHER, listed[0].id)):
        with pytest.raises(NotFound):
            refused()
    studies.end(MINE, listed[0].id)
    with pytest.raises(NotFound):
        studies.frames(MINE, first)
    assert [study.id for study in studies.listed(MINE)] == [listed[1].id]


def test_the_reason_reaches_the_client_over_grpc() -> None:
    options = ServerOptions(
        "127.0.0.1:0", studies=StudyLimits(max_studies=1, replaceable_after_seconds=0), grace_seconds=0.1
    )
    server = ReportServer(DecodingEngine(), options)
    try:
        with grpc.insecure_channel(server.address) as channel:
            stub = report_pb2_grpc.ReportServiceStub(channel)
            first = stub.BeginStudy(pb.BeginStudyRequest()).id
            second = stub.BeginStudy(pb.BeginStudyRequest()).id
            with pytest.raises(grpc.RpcError) as refused:
                stub.AddImage(pb.AddImageRequest(study=first, image=pb.Image(data=png(64, 64))))
            listed = stub.ListStudies(pb.ListStudiesRequest())
            assert listed.max_studies == 1 and len(listed.studies) == 1
            stub.EndStudy(pb.EndStudyRequest(study=listed.studies[0].id))
            assert not stub.ListStudies(pb.ListStudiesRequest()).studies
            with pytest.raises(grpc.RpcError):
                stub.EndStudy(pb.EndStudyRequest(study=second))
    finally:
        server.stop()
    details = {item.key: item.value for item in refused.value.trailing_metadata()}[DETAILS]
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(details).details[0].Unpack(info) and info.reason == "STUDY_REPLACED"
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert type(error_of(refused.value, "here")) is StudyReplaced


class Listing(DecodingEngine):
    """Notes during a generation whether studies are in use."""

    def generate(self, request: GenerationRequest, stopped: Callable[[], bool]) -> Iterator[Event]:
        self.in_use = [study.in_use for study in self.server.studies.listed(ANYBODY)]
        yield from super().generate(request, stopped)

    server: ReportServer
    in_use: list[bool]


def test_a_generation_holds_its_study() -> None:
    engine = Listing()
    server = engine.server = ReportServer(engine, ServerOptions("127.0.0.1:0", grace_seconds=0.1))
    try:
        with grpc.insecure_channel(server.address) as channel:
            stub = report_pb2_grpc.ReportServiceStub(channel)
            study = stub.BeginStudy(pb.BeginStudyRequest()).id
            stub.AddImage(pb.AddImageRequest(study=study, image=pb.Image(data=png(64, 64))))
            list(stub.GenerateReport(pb.GenerateReportRequest(study=study)))
            assert engine.in_use == [True]
            assert not stub.ListStudies(pb.ListStudiesRequest()).studies[0].in_use
    finally:
        server.stop()
