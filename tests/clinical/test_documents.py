"""Documents: highdicom reads the SR back with its references, FHIR's own model accepts the report, and both say what they are."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from fhir.resources.R4B.diagnosticreport import DiagnosticReport
from highdicom.sr import ContentSequence
from highdicom.sr.utils import find_content_items
from pydicom.sr.codedict import codes
from pydicom.uid import UID, BasicTextSRStorage, generate_uid

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.client.report_command import main as report
from echovlm_edge.runtime.clinical import structured_report as sr
from echovlm_edge.runtime.clinical.diagnostic_report import diagnostic_report
from echovlm_edge.runtime.clinical.source_images import as_shown, source_images
from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.contracts.extras import install_hint
from echovlm_edge.runtime.contracts.image_path import ImagePath
from echovlm_edge.runtime.contracts.request import FrameSelection, ImageInput
from echovlm_edge.runtime.contracts.tasks import Language
from echovlm_edge.runtime.serving.messages import NOTICE
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions
from tests.support.decoding_engine import DecodingEngine
from tests.support.dicom_files import png, ultrasound

STUDY, SERIES = generate_uid(), generate_uid()
ONE = FrameSelection()
RESULT = pb.Result(
    text="超声所见：结节 <3 mm> & 边缘光整。超声提示：甲状腺结节。",
    sections=pb.Sections(findings="结节 <3 mm> & 边缘光整。", impression="甲状腺结节。"),
    finish_reason=pb.FINISH_REASON_STOP,
    notice=NOTICE,
    model="echovlm-demo",
    bundle_id="b-123",
)


def dicom(frames: int = 1, selection: FrameSelection = ONE, **attributes: Any) -> ImageInput:
    given = {"StudyInstanceUID": STUDY, "SeriesInstanceUID": SERIES, "PatientID": "P1", **attributes}
    pixels = np.zeros((frames, 8, 8), np.uint8) if frames > 1 else np.zeros((8, 8), np.uint8)
    dataset = ultrasound(pixels, "MONOCHROME2", NumberOfFrames=frames, **given)
    for name in [name for name, value in given.items() if value is None]:
        delattr(dataset, name)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return ImageInput(buffer.getvalue(), name="a.dcm", selection=selection)


def read_back(file: bytes) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(file))


def test_the_sr_refers_to_its_images_and_says_that_it_is_a_draft() -> None:
    sources = source_images([dicom(), dicom(frames=9, selection=FrameSelection((2, 5))), ImageInput(png(8, 8))])
    read = read_back(sr.structured_report(RESULT, sources, Language.ZH))
    assert read.file_meta.MediaStorageSOPClassUID == read.SOPClassUID == BasicTextSRStorage
    assert (read.Modality, read.StudyInstanceUID, read.PatientID) == ("SR", STUDY, "P1")
    assert str(read.PatientName) == "SECRET^PATIENT"
    assert (read.CompletionFlag, read.VerificationFlag, read.PreliminaryFlag) == (
        "PARTIAL",
        "UNVERIFIED",
        "PRELIMINARY",
    )

    tree = ContentSequence.from_sequence([read], is_root=True)[0]
    images = find_content_items(tree, value_type="IMAGE", recursive=True)
    found = [(image.referenced_sop_instance_uid, image.referenced_frame_numbers) for image in images]
    assert [uid for uid, _ in found] == [source.header.SOPInstanceUID for source in sources]
    assert [list(frames or ()) for _, frames in found] == [[], [3, 6]]
    listed = read.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert listed.SeriesInstanceUID == SERIES
    assert {item.ReferencedSOPInstanceUID for item in listed.ReferencedSOPSequence} == {uid for uid, _ in found}

    texts = {item.name.meaning: item.value for item in find_content_items(tree, value_type="TEXT", recursive=True)}
    assert texts["Finding"] == RESULT.sections.findings and texts["Impression"] == RESULT.sections.impression
    assert texts["Comment"] == "Draft, not reviewed by a clinician. Written by echovlm-demo, bundle b-123."
    assert find_content_items(tree, name=codes.DCM.LanguageOfContentItemAndDescendants)[0].value.value == "zh"


def test_the_frames_referred_to_are_those_that_the_model_was_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(dicom(frames=9).data)
    images = [ImageInput(png(8, 8)), ImagePath(path, selection=FrameSelection((), 3)), dicom(), ImagePath(path)]
    sources = source_images(images)
    assert [source.frames for source in sources] == [(1, 5, 9), (), (5,)], "as asked, until the server says"
    result = pb.Result(
        pictures=[
            pb.Picture(study_image=2, frame=8, frame_count=9),
            pb.Picture(image=1, frame=0, frame_count=1),
            *(pb.Picture(image=2, frame=frame, frame_count=9) for frame in (4, 0, 2)),
            pb.Picture(image=3, frame=0, frame_count=1),
            pb.Picture(image=4, frame=2, frame_count=9, notes=["5 of 9 frames are there."]),
        ]
    )
    assert [source.frames for source in as_shown(sources, result)] == [(1, 3, 5), (), (3,)]


def test_only_the_header_of_a_large_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(dicom().data)
    with path.open("ab") as file:
        file.truncate(8 << 30)  # a file with a hole: of a size that no memory holds
    assert source_images([ImagePath(path)])[0].header.PatientID == "P1"


def test_a_text_without_headings_stands_whole_in_the_sr_and_the_impression_alone_keeps_the_images() -> None:
    sources = source_images([dicom()])
    for result, texts in (
        (pb.Result(text="A cyst.", notice=NOTICE, model="m", bundle_id="b"), {"A cyst."}),
        (pb.Result(text="-", sections=pb.Sections(impression="Cyst."), notice=NOTICE, model="m"), {"Cyst."}),
    ):
        read = read_back(sr.structured_report(result, sources, Language.EN))
        tree = ContentSequence.from_sequence([read], is_root=True)[0]
        assert texts <= {item.value for item in find_content_items(tree, value_type="TEXT", recursive=True)}
        assert len(find_content_items(tree, value_type="IMAGE", recursive=True)) == 1


def test_the_codes_are_those_of_the_standard() -> None:
    for ours in (sr.LANGUAGE, sr.OBSERVER_TYPE, sr.DEVICE, sr.DEVICE_UID, sr.DEVICE_NAME, sr.DEVICE_MAKER,
                 sr.DEVICE_MODEL, sr.COMMENT, sr.FINDINGS, sr.FINDING, sr.IMPRESSIONS, sr.IMPRESSION):  # fmt: skip
        named = [getattr(codes.DCM, name) for name in codes.DCM.dir(ours.meaning.replace(" ", ""))]
        assert (ours.value, ours.meaning) in {(code.value, code.meaning) for code in named}
    assert UID(read_back(sr.structured_report(RESULT, source_images([dicom()]), Language.EN)).SOPInstanceUID).is_valid


def test_fhir_accepts_the_report_and_it_says_that_it_is_a_draft() -> None:
    told = json.loads(diagnostic_report(RESULT, source_images([dicom()]), Language.ZH))
    DiagnosticReport.model_validate(told)
    assert told["status"] == "preliminary" and told["subject"]["identifier"]["value"] == "P1"
    assert told["imagingStudy"][0]["identifier"] == {"system": "urn:dicom:uid", "value": f"urn:oid:{STUDY}"}
    assert [tag.get("display", tag["code"]) for tag in told["meta"]["tag"]] == [NOTICE, "echovlm-demo", "b-123"]
    assert told["conclusion"] == f"{NOTICE} 甲状腺结节。"
    shown = base64.b64decode(told["presentedForm"][0]["data"]).decode()
    for text in (shown, told["text"]["div"]):
        assert NOTICE in text and "echovlm-demo, bundle b-123" in text
    assert RESULT.text in shown and "&lt;3 mm&gt; &amp;" in told["text"]["div"]
    pictures_alone = json.loads(diagnostic_report(RESULT, (), Language.EN))
    assert "subject" not in pictures_alone and "imagingStudy" not in pictures_alone


NOTED = pb.Result(
    text="A cyst.",
    notice=NOTICE,
    model="m",
    bundle_id="b",
    notes=["The text ends within a <sentence>."],
    pictures=[
        pb.Picture(image=1, frame_count=1, notes=["The file says Modality CT; EchoVLM was trained on ultrasound."]),
        pb.Picture(image=2, frame=0, frame_count=9),
        pb.Picture(image=2, frame=4, frame_count=9, notes=["It is <odd>."]),
    ],
)
NOTES = [
    "The text ends within a <sentence>.",
    "Image 1: The file says Modality CT; EchoVLM was trained on ultrasound.",
    "Image 2, frame 5: It is <odd>.",
]
REQUEST_ID = "0123456789abcdef"


def test_documents_have_the_requests_id_and_the_notes_about_text_and_pictures() -> None:
    sources = source_images([dicom()])
    read = read_back(sr.structured_report(NOTED, sources, Language.EN, REQUEST_ID))
    tree = ContentSequence.from_sequence([read], is_root=True)[0]
    comments = [item.value for item in find_content_items(tree, value_type="TEXT") if item.name.meaning == "Comment"]
    assert comments == [f"{NOTICE} Written by m, bundle b, request {REQUEST_ID}.", *NOTES]

    told = json.loads(diagnostic_report(NOTED, sources, Language.EN, REQUEST_ID))
    DiagnosticReport.model_validate(told)
    assert told["identifier"] == [{"system": "urn:echovlm-edge:request", "value": REQUEST_ID}]
    shown = base64.b64decode(told["presentedForm"][0]["data"]).decode()
    assert shown == f"{comments[0]}\n\nA cyst.\n\n" + "\n".join(NOTES)
    assert all(html.escape(line) in told["text"]["div"] for line in (comments[0].removeprefix(NOTICE), *NOTES))


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        ([dicom(StudyInstanceUID=None)], "a.dcm lacks the DICOM attribute StudyInstanceUID"),
        ([dicom(), dicom(PatientID="P2")], "a.dcm is of another patient"),
        (
            [dicom(PatientID="", PatientName="A^A"), dicom(PatientID="", PatientName="B^B")],
            "a.dcm is of another patient",
        ),
        ([ImageInput(b"\0" * 128 + b"DICM\xff\xff", name="a.dcm")], "a.dcm"),
    ],
)
def test_what_cannot_be_referred_to_is_one_sentence(images: list[ImageInput], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        source_images(images)


@pytest.fixture
def address() -> Iterator[str]:
    server = ReportServer(DecodingEngine(), ServerOptions("127.0.0.1:0"))
    yield server.address
    server.stop()


def test_the_command_writes_both(address: str, tmp_path: Path) -> None:
    image = tmp_path / "a.dcm"
    image.write_bytes(dicom().data)
    asked = ["--server", address, "--image", str(image)]
    assert report([*asked, "--sr", str(tmp_path / "r.dcm"), "--fhir", str(tmp_path / "r.json")]) == 0
    assert pydicom.dcmread(tmp_path / "r.dcm").SOPClassUID == BasicTextSRStorage
    DiagnosticReport.model_validate_json((tmp_path / "r.json").read_text())
    (identifier,) = json.loads((tmp_path / "r.json").read_text())["identifier"]
    comments = {
        item.TextValue for item in pydicom.dcmread(tmp_path / "r.dcm").ContentSequence if item.ValueType == "TEXT"
    }
    assert re.fullmatch("[0-9a-f]{16}", identifier["value"])
    assert any(f"request {identifier['value']}." in comment for comment in comments), "of the same call"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.dcm", "r.dcm", "r.json"]


@pytest.mark.parametrize("library", ["highdicom", "fhir.resources.R4B.diagnosticreport"])
def test_without_the_library_it_says_what_to_install(
    library: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("structured_report", "diagnostic_report"):
        monkeypatch.delitem(sys.modules, f"echovlm_edge.runtime.clinical.{name}")
    monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / "a.dcm").write_bytes(dicom().data)
    option = "--sr" if library == "highdicom" else "--fhir"
    assert report(["--server", address, "--image", str(tmp_path / "a.dcm"), option, str(tmp_path / "r")]) == 2
    assert install_hint("clinical") in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
