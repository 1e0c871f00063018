"""`ReportClient` and `AsyncReportClient` against a real server: the same verbs, images, results and errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from echovlm.v1 import report_pb2 as pb
from echovlm_edge import (
    AsyncReportClient,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    Report,
    ReportClient,
    Sampling,
    ServerBusy,
    ServerUnavailable,
    StageStarted,
    TextDelta,
    UserError,
)
from echovlm_edge.runtime.client.report import Asked, report_of
from echovlm_edge.runtime.contracts.errors import Busy, UnusableForm
from echovlm_edge.runtime.contracts.request import (
    Box,
    Event,
    Finished,
    FinishReason,
    GenerationRequest,
    ImageInput,
    Picture,
    Source,
    Stage,
)
from echovlm_edge.runtime.contracts.tasks import Language
from echovlm_edge.runtime.contracts.text_form import (
    ChoiceForm,
    ChoiceProbability,
    PatternForm,
    SchemaForm,
    SectionsForm,
    TextForm,
)
from echovlm_edge.runtime.contracts.token_probability import TokenProbability
from echovlm_edge.runtime.serving.messages import CallLimits
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions
from tests.support.decoding_engine import DecodingEngine
from tests.support.dicom_files import png, saved, ultrasound
from tests.support.recording_service import recording_service

TEXT = "Findings: A nodule. Impression: Benign."
LIKELY_CHOICES = (ChoiceProbability("left", -0.5, 0.75), ChoiceProbability("right", -1.5, 0.25))
LIKELY = (TokenProbability(1, "\ufffd", b"\xe5", -0.5, (TokenProbability(2, "<|im_end|>", b"", -0.25),)),)
Verb = Callable[[Any], Any]


class Reporting(DecodingEngine):
    """Writes a report of two sections, or raises what it was told to."""

    error: UserError | None = None

    def generate(self, request: GenerationRequest, stopped: Callable[[], bool]) -> Iterator[Event]:
        if self.error:
            raise self.error
        *_, _ = super().generate(request, stopped)
        yield StageStarted(Stage.PREFILL)
        yield TextDelta(TEXT[:9])
        yield TextDelta(TEXT[9:])
        seconds = {Stage.DECODE_IMAGES: 0.5, Stage.DECODE: 1.5}
        source, frames = (
            Source(0, 1, 64, 64, Box(0, 0, 64, 64)),
            [frame for turn in request.turns for frame in turn.frames],
        )
        shown = tuple(Picture(frame.image, True, source, 64, 64, 4) for frame in frames)
        likely = LIKELY if request.log_probabilities == 2 else ()
        yield Finished(
            TEXT,
            (1, 2),
            FinishReason.LENGTH,
            30,
            20,
            seconds,
            0.75,
            (),
            4,
            pictures=shown,
            probabilities=likely,
            choices=LIKELY_CHOICES,
        )


@pytest.fixture
def engine() -> Reporting:
    return Reporting()


@pytest.fixture
def address(engine: Reporting) -> Iterator[str]:
    server = ReportServer(engine, ServerOptions("127.0.0.1:0", grace_seconds=0.1, limits=CallLimits(4 << 20)))
    yield server.address
    server.stop()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    path.write_bytes(png(64, 64))
    return path


def synchronously(address: str, verb: Verb) -> Any:
    with ReportClient(address) as client:
        return verb(client)


def asynchronously(address: str, verb: Verb) -> Any:
    async def use() -> Any:
        async with AsyncReportClient(address) as client:
            return await verb(client)

    return asyncio.run(use())


both = pytest.mark.parametrize("use", [synchronously, asynchronously])
Use = Callable[[str, Verb], Any]


@both
def test_a_report_is_a_value(use: Use, address: str, picture: Path) -> None:
    report = use(address, lambda client: client.report(picture, include_token_ids=True))
    assert isinstance(report, Report)
    assert (report.text, report.findings, report.impression) == (TEXT, "A nodule.", "Benign.")
    assert (report.finish_reason, report.model, report.bundle_id) == ("length", "decoding", "b")
    usage = report.usage
    assert (usage.prompt_tokens, usage.image_tokens, usage.generated_tokens, usage.reused_tokens) == (30, 20, 2, 4)
    assert report.timings.stages[Stage.DECODE_IMAGES] == 0.5 and report.timings.first_token_seconds == 0.75
    assert "draft" in report.notice.lower() and report.token_ids == (1, 2)
    assert len(report.request_id) == 16 and int(report.request_id, 16) >= 0
    assert "nodule" not in repr(report)


@both
def test_how_likely_its_tokens_were_is_there_if_it_is_asked_for(use: Use, address: str, picture: Path) -> None:
    assert use(address, lambda client: client.report(picture, log_probabilities=2)).tokens == LIKELY
    assert use(address, lambda client: client.report(picture)).tokens == ()
    with pytest.raises(InvalidInput, match="log_probabilities is at most 20, got 21"):
        use(address, lambda client: client.report(picture, log_probabilities=21))
    with pytest.raises(InvalidInput, match="log_probabilities"):
        use(address, lambda client: client.report(picture, log_probabilities=-1))


@both
@pytest.mark.parametrize(
    ("task", "form", "expected"),
    [
        ("question", ChoiceForm(("left", "right")), ChoiceForm(("left", "right"))),
        ("question", SchemaForm('{"type": "null"}'), SchemaForm('{"type": "null"}')),
        ("question", PatternForm("a+"), PatternForm("a+")),
        ("report", SectionsForm(Language.ZH), SectionsForm(Language.EN)),  # the call's language
        ("judge", "answer", ChoiceForm(("True", "False"))),
        ("choice", "answer", ChoiceForm(("A", "B", "C", "D"))),
    ],
)
def test_a_form_is_that_of_the_request(
    use: Use, address: str, picture: Path, engine: Reporting, task: str, form: Any, expected: TextForm
) -> None:
    report = use(address, lambda client: client.write(task, [picture], prompt="Which?", form=form))
    assert engine.requests[-1].form == expected and report.choices == LIKELY_CHOICES


@both
def test_a_form_that_cannot_be_is_its_own_error(use: Use, address: str, engine: Reporting) -> None:
    engine.error = UnusableForm("The JSON schema cannot be used: it is too complex.")
    with pytest.raises(UnusableForm, match="too complex"):
        use(address, lambda client: client.ask("Which?", form=SchemaForm("{}")))


@both
def test_the_three_tasks(use: Use, address: str, picture: Path, engine: Reporting) -> None:
    use(address, lambda client: client.report([picture], language="zh", region="thyroid", sampling=Sampling(7)))
    use(address, lambda client: client.diagnose([picture]))
    use(address, lambda client: client.ask("Is it solid?"))
    report, diagnosis, question = engine.requests
    assert "甲状腺" in report.prompt and report.sampling.max_new_tokens == 7
    assert "impression" in diagnosis.prompt and "findings" not in diagnosis.prompt
    assert (question.prompt, question.images) == ("Is it solid?", ())


@both
def test_a_stream_ends_with_the_report(use: Use, address: str, picture: Path) -> None:
    def stream(client: Any) -> Any:
        if isinstance(client, ReportClient):
            return list(client.stream(picture))

        async def collect() -> list[object]:
            return [event async for event in client.stream(picture)]

        return collect()

    *events, last = use(address, stream)
    assert [event.text for event in events if isinstance(event, TextDelta)] == [TEXT[:9], TEXT[9:]]
    assert [event.stage for event in events if isinstance(event, StageStarted)] == [Stage.PREFILL]
    assert isinstance(last, Report) and last.text == TEXT and last.request_id


@both
def test_the_tasks_without_a_verb(use: Use, address: str, picture: Path, engine: Reporting) -> None:
    report = use(address, lambda client: client.write("findings", picture))
    use(address, lambda client: client.write("findings", [picture, picture], language="zh"))
    use(address, lambda client: client.write("judge", picture, prompt="It is a cyst."))
    answer = use(address, lambda client: client.write("choice", picture, prompt="A. Cyst. B. Nodule.", language="zh"))
    caption, findings, judged, chosen = (request.prompt for request in engine.requests)
    assert "description" in caption and report.prompt == caption and "这些图" in findings
    assert judged.endswith("True or False.\nIt is a cyst.") and chosen.endswith("\nA. Cyst. B. Nodule.")
    with pytest.raises(InvalidInput, match="The answer to a statement or to options means nothing without them"):
        answer.write_fhir("report.json")
    for task, sentence in (("judge", "The statement is empty"), ("choice", "The options are empty")):
        with pytest.raises(InvalidInput, match=sentence):
            use(address, lambda client, task=task: client.write(task, picture))
    with pytest.raises(InvalidInput, match="A judgement needs at least one image"):
        use(address, lambda client: client.write("judge", prompt="It is a cyst."))


def said(request: GenerationRequest) -> list[tuple[str, int, str]]:
    """Each turn's prompt, number of images and reply."""
    return [(turn.prompt, len(turn.images) + len(turn.frames), turn.reply) for turn in request.turns]


@both
def test_a_conversation(use: Use, address: str, picture: Path, engine: Reporting) -> None:
    def talk(client: Any) -> Any:
        if isinstance(client, ReportClient):
            conversation = client.conversation("Be brief.")
            conversation.report(picture)
            conversation.correct("A cyst.")
            engine.error = Busy("Full.", 0.01)
            with pytest.raises(ServerBusy):
                conversation.ask("Lost?")
            engine.error = None
            conversation.ask("Solid?", [picture, picture])
            return [conversation.ask("Sure?"), conversation.turns]

        async def asynchronous() -> list[Any]:
            conversation = client.conversation("Be brief.")
            await conversation.report(picture)
            conversation.correct("A cyst.")
            engine.error = Busy("Full.", 0.01)
            with pytest.raises(ServerBusy):
                await conversation.ask("Lost?")
            engine.error = None
            await conversation.ask("Solid?", [picture, picture])
            return [await conversation.ask("Sure?"), conversation.turns]

        return asynchronous()

    report, turns = use(address, talk)
    first, _, last = engine.requests
    assert {request.system for request in engine.requests} == {"Be brief."}
    assert said(last) == [(first.prompt, 1, "A cyst."), ("Solid?", 2, TEXT), ("Sure?", 0, "")]
    assert len(turns) == 3 and report.prompt == "Sure?" and "cyst" not in repr(turns)


def test_a_conversation_about_a_study_shows_each_image_once(address: str, picture: Path, engine: Reporting) -> None:
    with ReportClient(address) as client, client.study() as study:
        study.add(picture)
        conversation = study.conversation()
        conversation.report()
        conversation.ask("Solid?")
        study.add(png(32, 32))
        conversation.ask("And this one?", [png(16, 16)])
        conversation.ask("Sure?")
    reply = (engine.requests[0].prompt, 1, TEXT)
    assert said(engine.requests[1]) == [reply, ("Solid?", 0, "")]
    assert said(engine.requests[2]) == [reply, ("Solid?", 0, TEXT), ("And this one?", 2, "")]
    assert said(engine.requests[3]) == [reply, ("Solid?", 0, TEXT), ("And this one?", 2, TEXT), ("Sure?", 0, "")]


def test_a_conversation_keeps_the_bound_on_a_frames_tokens(picture: Path) -> None:
    """Another bound would read the images of all turns again."""
    with recording_service() as (recorded, address), ReportClient(address) as client:
        conversation = client.conversation()
        bounds = list[int]()
        for options in ({}, {"image_tokens": 64}, {}, {"image_tokens": 32}, {}):
            conversation.ask("Why?", [picture], **options)
            bounds.append(recorded.question.image_tokens)
    assert bounds == [0, 64, 64, 32, 32]


def test_a_study(address: str, picture: Path, engine: Reporting) -> None:
    with ReportClient(address) as client:
        with client.study() as study:
            first, second = study.add(picture), study.add(png(32, 32))
            assert (first.number, second.number, second.study_tokens) == (1, 2, 20)
            study.withdraw(second.number)
            assert study.report().text == TEXT and study.ask("Solid?").text == TEXT
            assert [len(request.frames) for request in engine.requests] == [1, 1]
        with pytest.raises(NotFound):
            study.report()


def test_studies_that_a_program_left_behind_are_listed_and_ended(address: str, picture: Path) -> None:
    with ReportClient(address) as client:
        left = client.connection.begin_study()
        client.connection.add_image(left, ImageInput(picture.read_bytes()))
    with ReportClient(address) as client:
        (study,) = client.studies()
        assert (study.images, study.in_use) == (1, False) and study.bytes > 0 and study.age_seconds >= 0
        client.end_study(study.id)
        assert client.studies() == ()
        with pytest.raises(NotFound):
            client.end_study(study.id)

    async def the_same() -> None:
        async with AsyncReportClient(address) as client:
            await client.connection.begin_study()
            (study,) = await client.studies()
            await client.end_study(study.id)
            assert await client.studies() == ()

    asyncio.run(the_same())


def test_a_study_on_an_event_loop(address: str, picture: Path, engine: Reporting) -> None:
    async def use() -> None:
        async with AsyncReportClient(address) as client:
            async with client.study() as study:
                first, second = await study.add(picture), await study.add(png(32, 32))
                assert (first.number, second.number) == (1, 2)
                await study.withdraw(2)
                assert (await study.report()).text == TEXT
                assert [len(request.frames) for request in engine.requests] == [1]
            with pytest.raises(NotFound):
                await study.report()

    asyncio.run(use())


def test_many_reports_at_once(address: str, picture: Path) -> None:
    async def use() -> Sequence[Report]:
        async with AsyncReportClient(address, retries=5) as client:
            return await asyncio.gather(*(client.report(picture) for _ in range(20)))

    reports = asyncio.run(use())
    assert [report.text for report in reports] == [TEXT] * 20
    assert len({report.request_id for report in reports}) == 20


@both
def test_errors_are_values_to_act_on(use: Use, address: str, picture: Path, engine: Reporting) -> None:
    engine.error = Busy("Full.", 0.25)
    with pytest.raises(ServerBusy, match=r"Full\.") as busy:
        use(address, lambda client: client.report(picture))
    assert busy.value.retry_after == 0.25
    engine.error = None
    with pytest.raises(InvalidInput, match=r"^b\.png is of no known kind"):
        use(address, lambda client: client.report([picture, _file(picture.with_name("b.png"), b"text")]))
    with pytest.raises(ServerUnavailable, match="No server listens"):
        use("127.0.0.1:9", lambda client: client.report(picture))
    with pytest.raises(DeadlineExceeded):
        use(address, lambda client: client.ask("Why?", timeout=0))
    with pytest.raises(InvalidInput, match="language is one of en, zh, not fr"):
        use(address, lambda client: client.report(picture, language="fr"))
    with pytest.raises(TypeError, match="no option langauge"):
        use(address, lambda client: client.report(picture, langauge="en"))
    with pytest.raises(InvalidInput, match="cannot be read"):
        use(address, lambda client: client.report("no-such-file.png"))


def test_a_study_takes_one_image_at_a_time(address: str, tmp_path: Path) -> None:
    for name in ("1.png", "2.png"):
        _file(tmp_path / name, png(8, 8))
    with ReportClient(address) as client, client.study() as study:
        with pytest.raises(InvalidInput, match="one image at a time, not 2"):
            study.add(tmp_path)
        with pytest.raises(TypeError, match="no option language"):
            study.add(tmp_path / "1.png", language="en")  # type: ignore[call-arg]


@both
def test_a_large_file_is_uploaded(use: Use, tmp_path: Path) -> None:
    data = bytes(range(256)) * (20 << 10)  # 5 MB
    told: list[tuple[int, int]] = []
    with recording_service() as (recording, address):
        video = _file(tmp_path / "a.avi", data)
        progress = lambda sent, total: told.append((sent, total))  # noqa: E731
        assert use(address, lambda client: client.report(video, progress=progress)).text == "Done"
    assert list(recording.uploads.values()) == [data] and "forget upload 0" in recording.calls
    assert told[-1] == (len(data), len(data))


def test_documents_are_written(address: str, tmp_path: Path) -> None:
    pytest.importorskip("fhir.resources")
    pytest.importorskip("highdicom")
    import pydicom

    identity = {"PatientID": "7", "StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4"}
    file = _file(tmp_path / "a.dcm", saved(ultrasound(np.zeros((8, 8), np.uint8), "MONOCHROME2", **identity)))
    with ReportClient(address) as client:
        report = client.report(file)
        report.write_fhir(tmp_path / "a.json")
        report.write_sr(str(tmp_path / "a-sr.dcm"))
        with client.study() as study:
            study.add(file)
            study.report().write_sr(tmp_path / "study-sr.dcm")
    assert json.loads((tmp_path / "a.json").read_text())["conclusion"].endswith("Benign.")
    assert {pydicom.dcmread(tmp_path / name).StudyInstanceUID for name in ("a-sr.dcm", "study-sr.dcm")} == {"1.2.3"}


def test_pictures_name_their_files_and_documents_count_a_studys_first() -> None:
    result = pb.Result(
        notes=["The text repeats itself."],
        pictures=[
            pb.Picture(study_image=3, frame=4, frame_count=9, box=pb.Box(right=8, bottom=6)),
            pb.Picture(image=1, frame_count=1, window=pb.Window(center=40, width=80), notes=["Cut."]),
            pb.Picture(image=2, frame_count=1),
        ],
    )
    images = ImageInput(b"", name="call.dcm"), ImageInput(b"", name="study.dcm")
    report = report_of(result, "", Asked((images[0],), study_images={1: images[0], 3: images[1]}))
    assert report.notes == ("The text repeats itself.",)
    study, call, unknown = report.pictures
    assert (study.file, study.of_study, study.image, study.frame, study.box) == ("study.dcm", True, 3, 4, (0, 0, 8, 6))
    assert (call.file, call.of_study, call.window, call.notes) == ("call.dcm", False, (40, 80), ("Cut.",))
    assert (unknown.file, unknown.box, unknown.window) == ("image 2", None, None)
    assert [picture.image for picture in report._result.pictures] == [2, 3, 4], (
        "in the row of the study's two and the call's"
    )


def _file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
