"""`/v1/reports` as it is written: events, sections, documents of the same result, questions with what was said before."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echovlm_edge.runtime.contracts.errors import UnusableNumbers
from echovlm_edge.runtime.contracts.request import (
    Event,
    Finished,
    FinishReason,
    GenerationRequest,
    Span,
    Stage,
    StageStarted,
    TextDelta,
)
from echovlm_edge.runtime.contracts.sections import section_ranges, split_sections
from echovlm_edge.runtime.observability.ended_call import EndedCall
from echovlm_edge.runtime.serving.http.exchange.silences import with_silences
from echovlm_edge.runtime.serving.transport.server import ReportServer
from tests.support.decoding_engine import DecodingEngine
from tests.support.dicom_files import png, saved, ultrasound
from tests.support.http_door import OPTIONS
from tests.support.waiting import wait_for

REPORTS = "/v1/reports"
TEXT = "Ultrasound findings: A cyst. Ultrasound impression: Cyst."
SPANS = (
    Span(Stage.DECODE_IMAGES, 0.0, 2e-6),  # shorter than any call
    Span(Stage.DECODE, 2e-6, 1e-6),
    Span(Stage.DECODE, 2e-6, 1e-6),  # of the same step
    Span(Stage.DECODE, 3e-6, 1e-6),
)


class Writing(DecodingEngine):
    """Writes `TEXT` word by word, or fails after the first."""

    failing = False

    def generate(self, request: GenerationRequest, stopped: Callable[[], bool]) -> Iterator[Event]:
        self.requests.append(request)
        yield StageStarted(Stage.DECODE_IMAGES)
        yield StageStarted(Stage.PREFILL)
        for word in TEXT.split(" "):
            yield TextDelta(f"{word} ")
            if self.failing:
                raise UnusableNumbers()
        seconds = {Stage.DECODE_IMAGES: 0.2, Stage.DECODE: 0.2}
        yield Finished(TEXT, (1, 2, 3), FinishReason.STOP, 9, 4, seconds, 0.3, SPANS)


Served = tuple[httpx.Client, Writing, list[EndedCall]]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    engine, ended = Writing(), list[EndedCall]()
    server = ReportServer(engine, OPTIONS, observers=[ended.append])
    try:
        with httpx.Client(base_url=f"http://{server.http_address}", timeout=30) as client:
            yield client, engine, ended
    finally:
        server.stop()


def dicom() -> bytes:
    dataset = ultrasound(np.random.default_rng(1).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    dataset.PatientID, dataset.PatientName = "P-17", "Doe^Jane"
    dataset.PatientBirthDate, dataset.PatientSex = "", "F"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    return saved(dataset)


def streamed(client: httpx.Client, data: dict[str, Any], file: bytes | None = None) -> list[dict[str, Any]]:
    files = [("file", ("a", file or png(80, 60)))]
    with client.stream("POST", REPORTS, files=files, data=data | {"stream": "true"}) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"] == "text/event-stream"
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line[6:]) for line in lines]


def test_a_stream_tells_stages_text_with_its_sections_and_the_result(served: Served) -> None:
    client, _, ended = served
    before = len(ended)
    stage, *texts, last = streamed(client, {})
    assert stage == {"stage": "prefill"}  # what was before it is known to be right only then
    assert "".join(event["text"] for event in texts).split() == TEXT.split()
    assert texts[0]["sections"] == {} and set(texts[-1]["sections"]) == {"findings", "impression"}
    result = last["result"]
    start, end = result["section_ranges"]["impression"]
    assert result["text"][start:end] == result["impression"] == "Cyst."
    assert result["usage"]["decode_steps"] == 2 and result["usage"]["generated_tokens"] == 3
    pieces = {one["stage"]: one["pieces"] for one in result["timings"]["spans"]}
    assert pieces["decoding_images"] == [[0.0, 2e-6]] and pieces["decode"] == [[2e-6, pytest.approx(4e-6)]]
    wait_for(lambda: len(ended) > before)
    assert ended[-1].outcome == "ok" and ended[-1].method == "GenerateReport"


def test_a_whole_answer_has_the_same_result(served: Served) -> None:
    client, _, _ = served
    whole = client.post(REPORTS, files={"file": png(80, 60)}).json()
    result = streamed(client, {})[-1]["result"]
    for name in ("text", "section_ranges", "notice", "prompt", "usage"):
        assert whole[name] == result[name]
    assert "documents" not in whole


def test_an_error_after_the_first_word_is_an_event(served: Served) -> None:
    client, engine, _ = served
    engine.failing = True
    try:
        events = streamed(client, {})
    finally:
        engine.failing = False
    assert events[-1]["error"]["code"] == "unusable_numbers" and "text" in events[-2]


def test_documents_are_of_the_same_result(served: Served) -> None:
    client, engine, _ = served
    before = len(engine.requests)
    result = streamed(client, {"documents": "sr,fhir"}, dicom())[-1]["result"]
    assert len(engine.requests) == before + 1
    documents = {kind: base64.b64decode(made["data"]) for kind, made in result["documents"].items()}
    report = pydicom.dcmread(io.BytesIO(documents["sr"]))
    assert (report.PatientID, report.Modality) == ("P-17", "SR") and b"A cyst." in documents["sr"]
    assert json.loads(documents["fhir"])["resourceType"] == "DiagnosticReport"
    assert result["documents"]["sr"]["media_type"] == "application/dicom"
    assert "P-17" not in json.dumps({name: value for name, value in result.items() if name != "documents"})


@pytest.mark.parametrize(
    ("data", "param"),
    [
        ({"documents": "sr"}, "documents"),  # of a picture that is no DICOM
        ({"documents": "pdf"}, "documents"),
        ({"documents": "sr", "task": "question", "prompt": "Why?"}, "documents"),
        ({"documents": "fhir", "format": "fhir"}, "documents"),
        ({"stream": "true", "format": "sr"}, "format"),
        ({"format": "fhir", "task": "judge", "prompt": "A cyst."}, "format"),
        ({"turns": "[1]"}, "turns"),
        ({"turns": '[{"prompt": "a", "reply": "b", "role": "c"}]'}, "turns"),
        ({"turns": "nothing"}, "turns"),
    ],
)
def test_what_cannot_be_is_refused_before_the_work(served: Served, data: dict[str, str], param: str) -> None:
    client, engine, _ = served
    before = len(engine.requests)
    answer = client.post(REPORTS, files={"file": png(80, 60)}, data=data)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text
    assert len(engine.requests) == before


def test_a_question_continues_what_was_said_about_the_files(served: Served) -> None:
    client, engine, ended = served
    turns = json.dumps([{"prompt": "Report.", "reply": TEXT}, {"prompt": "Which side?", "reply": "Right."}])
    data = {"task": "question", "prompt": "How large?", "turns": turns, "frames": "2"}
    assert client.post(REPORTS, files={"file": png(80, 60)}, data=data).status_code == 200
    asked = engine.requests[-1]
    assert asked.prompt == "How large?" and not asked.images
    assert [(turn.prompt, turn.reply, len(turn.images)) for turn in asked.earlier] == [
        ("Report.", TEXT, 1),
        ("Which side?", "Right.", 0),
    ]
    assert asked.earlier[0].images[0].selection.evenly_spaced == 2
    wait_for(lambda: ended[-1].method == "AnswerQuestion")


@pytest.mark.parametrize(("task", "words"), [("judge", "True or False"), ("choice", "Give only its letter")])
def test_closed_questions_have_their_own_prompts(served: Served, task: str, words: str) -> None:
    client, engine, _ = served
    data = {"task": task, "prompt": "A. Cyst. B. Solid nodule."}
    assert client.post(REPORTS, files={"file": png(80, 60)}, data=data).status_code == 200
    assert words in engine.requests[-1].prompt


@given(
    st.lists(
        st.sampled_from(
            ["Findings:", "Ultrasound impression:", "超声提示：", " ", "\n", "a cyst", "{", "}", ";", "囊肿。", "*"]
        ),
        max_size=9,
    )
)
def test_ranges_are_where_the_sections_stand(pieces: list[str]) -> None:
    text = "".join(pieces)
    ranges, sections = section_ranges(text), split_sections(text)
    for name in ("findings", "impression"):
        start, end = ranges.get(name, (0, 0))
        assert 0 <= start <= end <= len(text) and text[start:end] == getattr(sections, name)


def test_silence_is_noticed_again_and_again_and_nothing_is_lost() -> None:
    async def seen() -> list[int | None]:
        go = asyncio.Event()

        async def numbers() -> AsyncIterator[int]:
            yield 1
            await go.wait()
            yield 2

        found: list[int | None] = []
        async for number in with_silences(numbers(), 0.01):
            found.append(number)
            if found.count(None) == 2:
                go.set()
        return found

    first, *silences, last = asyncio.run(seen())
    assert (first, last) == (1, 2) and len(silences) >= 2 and set(silences) == {None}


def test_an_error_after_a_silence_is_raised() -> None:
    async def failing() -> AsyncIterator[int]:
        await asyncio.sleep(0.02)
        raise ValueError
        yield 0

    async def read() -> None:
        async for _ in with_silences(failing(), 0.01):
            pass

    with pytest.raises(ValueError):
        asyncio.run(read())
