"""`/v1/reports`: files in; JSON, DICOM SR or FHIR out; and nothing of it is kept."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import grpc
import httpx
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import DeflatedExplicitVRLittleEndian

from echovlm.v1 import report_pb2 as pb
from echovlm.v1 import report_pb2_grpc
from echovlm_edge.runtime.contracts.request import Event, Finished, GenerationRequest
from echovlm_edge.runtime.contracts.token_probability import TokenProbability
from echovlm_edge.runtime.serving.transport.server import ReportServer
from echovlm_edge.runtime.serving.uploads import UploadLimits
from tests.support.decoding_engine import DecodingEngine
from tests.support.dicom_files import png, saved, ultrasound
from tests.support.http_door import OPTIONS, http_server
from tests.support.telling_engine import TellingEngine
from tests.support.waiting import wait_for

REPORTS = "/v1/reports"
TEXT = "Ultrasound findings: A cyst. Ultrasound impression: Cyst."
LIKELY = (TokenProbability(7, "A", b"A", -0.5), TokenProbability(8, "\ufffd", "é".encode()[:1], -1.25))
Served = tuple[ReportServer, httpx.Client, "Asked"]


class Asked(TellingEngine):
    """Remembers what it was asked."""

    def generate(self, request: GenerationRequest, stopped: Any) -> Iterator[Event]:
        self.requests.append(request)
        likely = LIKELY if request.log_probabilities == 0 else ()
        for event in super().generate(request, stopped):
            yield replace(event, probabilities=likely) if isinstance(event, Finished) else event


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    engine = Asked(TEXT)
    with http_server(engine, replace(OPTIONS, uploads=UploadLimits(8 << 20, max_file_bytes=4 << 20))) as (
        server,
        client,
    ):
        yield server, client, engine


@pytest.fixture(autouse=True)
def nothing_is_kept(served: Served) -> Iterator[None]:
    yield
    server, _, _ = served
    wait_for(lambda: server.uploads.counts() == (0, 0) and server.calls_in_flight == 0)


def dicom(**attributes: object) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    dataset = ultrasound(pixels)
    dataset.PatientID, dataset.PatientName, dataset.PatientBirthDate, dataset.PatientSex = "P-17", "Doe^Jane", "", "F"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return saved(dataset)


def files(*data: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("file", (f"image {place}", one)) for place, one in enumerate(data)]


def test_json_is_what_grpc_answers(served: Served) -> None:
    server, client, _ = served
    answer = client.post(REPORTS, files=files(dicom(), png(80, 60)))
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
    report = answer.json()
    with grpc.insecure_channel(server.address) as channel:
        stub = report_pb2_grpc.ReportServiceStub(channel)
        images = [pb.Image(data=data) for data in (dicom(), png(80, 60))]
        *_, last = stub.GenerateReport(pb.GenerateReportRequest(images=images))
    assert report["text"] == last.result.text and report["findings"] == "A cyst." and report["impression"] == "Cyst."
    assert report["notice"] == last.result.notice and report["prompt"] == last.result.prompt
    assert len(report["pictures"]) == 2 and report["request_id"] == answer.headers["x-request-id"]
    assert "P-17" not in answer.text and "Doe" not in answer.text


def test_json_says_how_likely_the_tokens_were_if_it_is_asked_for(served: Served) -> None:
    _, client, _ = served
    asked = client.post(REPORTS, files=files(png(80, 60)), data={"logprobs": "true"}).json()
    assert asked["tokens"] == [
        {"text": "A", "bytes": [65], "log_probability": -0.5},
        {"text": "\ufffd", "bytes": [195], "log_probability": -1.25},
    ]
    assert "tokens" not in client.post(REPORTS, files=files(png(80, 60))).json()


def test_fields_are_options(served: Served) -> None:
    _, client, engine = served
    fields = {
        **{
            "task": "impression",
            "language": "zh",
            "region": "breast",
            "temperature": "0.5",
            "top_p": "0.9",
            "seed": "7",
        },
        **{"max_completion_tokens": "9", "priority": "batch", "frames": "2", "keep_whole_frame": "true"},
        **{"system_prompt": "简短", "repetition_penalty": "1.1"},
    }
    answer = client.post(REPORTS, files=files(png(80, 60)), data=fields)
    assert answer.status_code == 200, answer.text
    asked = engine.requests[-1]
    assert (asked.sampling.max_new_tokens, asked.sampling.seed, asked.system) == (9, 7, "简短")
    assert asked.sampling.temperature == 0.5 and asked.sampling.repetition_penalty == pytest.approx(1.1)
    assert asked.prompt.endswith("检查部位：乳腺") and asked.images[0].selection.evenly_spaced == 2
    assert not asked.images[0].crop_to_regions and asked.priority.name == "BATCH"


@pytest.mark.parametrize("how", [{"headers": {"Accept": "application/dicom"}}, {"data": {"format": "sr"}}])
def test_a_dicom_sr_is_the_patient_s_of_the_first_image(served: Served, how: dict[str, Any]) -> None:
    _, client, _ = served
    sent = dicom()
    answer = client.post(REPORTS, files=files(png(80, 60), sent), **how)
    assert answer.headers["content-type"] == "application/dicom"
    document, image = pydicom.dcmread(io.BytesIO(answer.content)), pydicom.dcmread(io.BytesIO(sent))
    assert (document.PatientID, document.PatientName) == ("P-17", "Doe^Jane")
    assert document.StudyInstanceUID == image.StudyInstanceUID and document.Modality == "SR"
    assert b"A cyst." in answer.content and answer.headers["x-request-id"].encode() in answer.content


def test_a_fhir_report_refers_to_the_images(served: Served) -> None:
    _, client, _ = served
    answer = client.post(REPORTS, files=files(dicom()), headers={"Accept": "application/fhir+json"})
    report = json.loads(answer.content)
    assert answer.headers["content-type"] == "application/fhir+json"
    assert report["resourceType"] == "DiagnosticReport" and report["status"] == "preliminary"
    assert "P-17" in answer.text


@pytest.mark.parametrize(
    ("sent", "how", "status", "param"),
    [
        ([], {"data": {"task": "report"}}, 400, None),
        ([png(80, 60)], {"data": {"format": "sr"}}, 400, "format"),
        ([png(80, 60)], {"data": {"format": "pdf"}}, 400, "format"),
        ([png(80, 60)], {"headers": {"Accept": "text/event-stream"}}, 406, None),
        ([png(80, 60)], {"data": {"task": "poem"}}, 400, "task"),
        ([png(80, 60)], {"data": {"token": "secret"}}, 400, "token"),
        ([png(80, 60)], {"data": {"temperature": "warm"}}, 400, "temperature"),
        ([png(80, 60)], {"data": {"temperature": "11"}}, 400, None),
        ([b"GIF89a"], {}, 400, None),
        ([b""], {}, 400, None),
        ([dicom(), dicom(PatientID="P-18")], {"data": {"format": "sr"}}, 400, None),
        ([dicom()[:300]], {"data": {"format": "fhir"}}, 400, None),
        ([b"0" * (5 << 20)], {}, 400, None),
    ],
)
def test_what_cannot_be_a_report_is_refused(
    served: Served, sent: list[bytes], how: dict[str, Any], status: int, param: str | None
) -> None:
    _, client, _ = served
    form = {"files": files(*sent), **how} if sent else {"files": {"task": (None, "report")}}
    answer = client.post(REPORTS, **form)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert error["message"] and "P-18" not in error["message"]


def test_a_header_that_inflates_without_end_takes_bounded_memory(served: Served) -> None:
    _, client, _ = served
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush()
    whole = dicom()
    head = pydicom.dcmread(io.BytesIO(whole)).file_meta
    head.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    file = io.BytesIO()
    file.write(bytes(128) + b"DICM")
    pydicom.filewriter.write_file_meta_info(file, head)
    answer = client.post(REPORTS, files=files(file.getvalue() + bomb), data={"format": "sr"})
    assert answer.status_code == 400 and "DICOM" in answer.json()["error"]["message"]


FORM = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc\r\n--b--\r\n'
BROKEN = {
    "no boundary": (FORM, "multipart/form-data"),
    "another boundary": (FORM, "multipart/form-data; boundary=c"),
    "without its end": (FORM[:-6], "multipart/form-data; boundary=b"),
    "empty": (b"", "multipart/form-data; boundary=b"),
    "end alone": (b"--b--\r\n", "multipart/form-data; boundary=b"),
    "no name": (FORM.replace(b'; name="file"', b""), "multipart/form-data; boundary=b"),
    "no disposition": (b"--b\r\n\r\nabc\r\n--b--\r\n", "multipart/form-data; boundary=b"),
    "long head": (
        FORM.replace(b"abc", b"").replace(b"\r\n\r\n", b"\r\nX: " + b"y" * 20_000),
        "multipart/form-data; boundary=b",
    ),
    "long boundary": (FORM, f"multipart/form-data; boundary={'b' * 5000}"),
    "what follows the end": (FORM + b"x" * 200_000, "multipart/form-data; boundary=b"),
    "many parts": (
        b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n\r\n' * 300 + b"--b--",
        "multipart/form-data; boundary=b",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_form_is_refused(served: Served, name: str) -> None:
    _, client, _ = served
    body, kind = BROKEN[name]
    answer = client.post(REPORTS, content=body, headers={"Content-Type": kind})
    assert answer.status_code in (400, 413) and answer.json()["error"]["message"], answer.text


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(
        st.binary(max_size=20)
        | st.sampled_from(
            [b"--b", b"--b--", b"\r\n", b"\r\n\r\n", b"\n", b'Content-Disposition: form-data; name="file"', b":"]
        ),
        max_size=12,
    )
)
def test_no_form_is_a_fault(served: Served, pieces: list[bytes]) -> None:
    _, client, _ = served
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = client.post(REPORTS, content=b"".join(pieces), headers=kind)
    assert answer.status_code in (400, 413, 415), answer.text


def test_a_server_without_uploads_offers_no_reports() -> None:
    with http_server(DecodingEngine(), replace(OPTIONS, uploads=UploadLimits(0))) as (_, client):
        answer = client.post(REPORTS, files=files(png(80, 60)))
    assert answer.status_code == 501 and answer.json()["error"]["code"] == "not_offered"
