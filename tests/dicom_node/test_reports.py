"""A study that is sent by C-STORE is a draft report in PACS: which pictures, which question, which versions."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from echovlm_edge import ReportClient
from echovlm_edge.runtime.client.report import Report
from echovlm_edge.runtime.clinical.source_images import SourceImage
from echovlm_edge.runtime.contracts.request import Sampling
from echovlm_edge.runtime.dicom_node.node import Node
from echovlm_edge.runtime.dicom_node.reporting import documents, working
from tests.support.carts import Pacs, cine, running_node, still, store, study_of, texts_of, write
from tests.support.waiting import wait_for


def record(node: Node, study: dict[str, object]) -> dict[str, Any]:
    """What the node keeps about a study's last report."""
    return node.spool.deliveries.records(node.spool.studies.find(str(study["StudyInstanceUID"])))[-1]


def asked_by_grpc(server: str, files: list[Path], kept: dict[str, Any], **options: Any) -> tuple[Report, int]:
    """Ask the server about the same pictures as a study; returns the report, and the context that the study takes."""
    with ReportClient(server) as client, client.study() as same:
        for path, (uid, frames) in zip(files, kept["instances"], strict=True):
            assert path.stem == uid
            added = same.add(path, **({"frames_spaced": frames} if frames > 1 else {}))
        report = same.report(sampling=Sampling(max_new_tokens=8), include_token_ids=True, **options)
    return report, added.study_tokens


def test_a_study_becomes_a_report_of_the_same_patient(tmp_path: Path, server: str, pacs: Pacs) -> None:
    study = study_of(BodyPartExamined="BREAST")
    files = write(tmp_path / "in", *(still(study, seed) for seed in range(3)))
    with running_node(tmp_path / "spool", server, destination=(pacs.name,)) as node:
        assert store(node, files) == {}
        wait_for(lambda: pacs.documents())
    (document,) = pacs.documents()
    for keyword in (
        "StudyInstanceUID",
        "PatientID",
        "PatientName",
        "AccessionNumber",
        "StudyDate",
        "StudyID",
        "PatientSex",
    ):
        assert document[keyword].value == study[keyword]
    assert document.VerificationFlag == "UNVERIFIED"
    evidence = document.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert [item.ReferencedSOPInstanceUID for item in evidence] == [path.stem for path in files]
    comments = " ".join(texts_of(document)["Comment"])
    assert "region breast" in comments and "The model was shown 1, 2, 3." in comments and "quiet period" in comments


def test_its_tokens_are_those_that_grpc_gives_for_the_same_pictures(tmp_path: Path, server: str, pacs: Pacs) -> None:
    """Twelve stills and three cines, whose frames come last; most of the prompt was read before the report was asked for."""
    study = study_of(BodyPartExamined="THYROID")
    stills = [still(study, seed) for seed in range(12)]
    cines = [cine(study, 100), cine(study, 101, RepresentativeFrameNumber=2), cine(study, 102)]
    files = write(tmp_path / "in", *cines[:1], *stills, *cines[1:])
    with running_node(tmp_path / "spool", server, destination=(pacs.name,), quiet_seconds=3.0) as node:
        assert store(node, files) == {}
        wait_for(lambda: pacs.documents())
        kept = record(node, study)
    order = [*files[1:13], files[0], *files[13:]]
    assert [uid for uid, _ in kept["instances"]] == [path.stem for path in order]
    assert [frames for _, frames in kept["instances"]] == [1] * 12 + [2, 1, 1]
    report, study_tokens = asked_by_grpc(server, order, kept, region="thyroid")
    assert list(report.token_ids) == kept["token_ids"]
    (document,) = pacs.documents()
    shown = texts_of(document)
    assert report.text in (*shown.get("Finding", []), *shown.get("Impression", []))
    # All pictures had been read when the report was asked for; the server reuses whole chunks of 64 tokens.
    assert study_tokens - int(str(kept["reused_tokens"])) <= 64


def test_a_near_duplicate_is_dropped_when_it_comes(tmp_path: Path, server: str, pacs: Pacs) -> None:
    study = study_of()
    first, other = still(study, 1), still(study, 2)
    with_caliper = still(study, 1)
    pixels = np.frombuffer(with_caliper.PixelData, np.uint8).copy()
    pixels[640:644] = 255
    with_caliper.PixelData = pixels.tobytes()
    with running_node(tmp_path / "spool", server, destination=(pacs.name,)) as node:
        files = write(tmp_path / "in", cine(study, 8), first, with_caliper, other)
        store(node, files)
        wait_for(lambda: pacs.documents())
        kept = record(node, study)
    assert [uid for uid, _ in kept["instances"]][:2] == [first.SOPInstanceUID, other.SOPInstanceUID]
    report, _ = asked_by_grpc(server, [files[1], files[3], files[0]], kept)
    assert list(report.token_ids) == kept["token_ids"] and report.usage.prompt_tokens == kept["prompt_tokens"]
    assert "3 looks like 2" in " ".join(texts_of(pacs.documents()[0])["Comment"])


def test_what_comes_later_makes_a_version_that_names_the_one_before(tmp_path: Path, server: str, pacs: Pacs) -> None:
    study = study_of()
    one, two = write(tmp_path / "in", still(study, 1), still(study, 2))
    with running_node(tmp_path / "spool", server, destination=(pacs.name,)) as node:
        store(node, [one])
        wait_for(lambda: pacs.documents())
        store(node, [one])  # the same instance again changes nothing
        store(node, [two])
        wait_for(lambda: len(pacs.documents()) == 2)
        first, second = pacs.documents()
        reference = second.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
        assert reference.ReferencedSOPInstanceUID == first.SOPInstanceUID
        assert "PredecessorDocumentsSequence" not in first
        uid = str(study["StudyInstanceUID"])
        wait_for(lambda: node.spool.studies.find(uid).state == "delivered")
        assert node.spool.studies.find(uid).version == 2


def test_pictures_beyond_the_limit_are_left_out_by_name(tmp_path: Path, server: str, pacs: Pacs) -> None:
    study = study_of()
    files = write(tmp_path / "in", *(still(study, seed) for seed in range(4)), cine(study, 9))
    with running_node(tmp_path / "spool", server, destination=(pacs.name,), max_pictures=3) as node:
        store(node, files)
        wait_for(lambda: pacs.documents())
    comments = " ".join(texts_of(pacs.documents()[0])["Comment"])
    assert "shown 1, 2, 3." in comments and "4 has no room; 5 has no room" in comments


def test_a_damaged_picture_is_left_out_and_the_others_are_read(tmp_path: Path, server: str, pacs: Pacs) -> None:
    study = study_of()
    damaged = still(study, 1)
    damaged.PixelData = damaged.PixelData[:100]
    with running_node(tmp_path / "spool", server, destination=(pacs.name,)) as node:
        store(node, write(tmp_path / "in", damaged, still(study, 2)))
        wait_for(lambda: pacs.documents())
    assert "Left out: 1 could not be read." in " ".join(texts_of(pacs.documents()[0])["Comment"])


def test_a_study_without_a_picture_fails_by_name(tmp_path: Path, server: str, pacs: Pacs) -> None:
    study = study_of()
    damaged = still(study, 1)
    damaged.PixelData = damaged.PixelData[:100]
    with running_node(tmp_path / "spool", server, destination=(pacs.name,)) as node:
        store(node, write(tmp_path / "in", damaged))
        uid = str(study["StudyInstanceUID"])
        wait_for(lambda: node.spool.studies.find(uid).state == "failed")
        assert "no picture" in node.spool.studies.find(uid).reason
    assert not pacs.documents()


@pytest.mark.parametrize("attribute", ["BodyPartExamined", "AnatomicRegionSequence", "StudyDescription"])
def test_the_table_of_questions_chooses_language_and_prompt(
    attribute: str, tmp_path: Path, server: str, pacs: Pacs
) -> None:
    from pydicom.dataset import Dataset

    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "10200004", "SCT", "Liver"
    value = {"BodyPartExamined": "LIVER", "AnatomicRegionSequence": [code], "StudyDescription": "US liver"}[attribute]
    questions = tmp_path / "questions.toml"
    questions.write_text(
        '[chinese]\nae_title = "ZH-*"\nlanguage = "zh"\n[words]\nae_title = "ZH-1"\nprompt = "Describe."\n'
    )
    study = study_of(**{attribute: value})
    with running_node(tmp_path / "spool", server, destination=(pacs.name,), questions=questions) as node:
        store(node, write(tmp_path / "in", still(study, 1)), title="ZH-1")
        wait_for(lambda: pacs.documents())
        kept = record(node, study)
    assert (kept["region"], kept["language"], kept["prompt"]) == ("liver", "zh", "Describe.")
    comments = " ".join(texts_of(pacs.documents()[0])["Comment"])
    assert "liver" in comments and "chinese" in comments and "words" in comments
    assert json.dumps(kept)


ESCAPED = {  # as PS3.5 K.2 writes them; pydicom would write no escape sequences
    "PatientName": b"Wang^XiaoDong=\x1b$)A\xcd\xf5^\x1b$)A\xd0\xa1\xb6\xab",
    "StudyDescription": b"\x1b$)A\xb3\xac\xc9\xf9 \xc8\xe9\xcf\xd9",
}


@pytest.mark.parametrize("characters", ["GB18030", "GBK", "ISO_IR 192", ["", "ISO 2022 IR 58"]])
def test_a_name_in_chinese_is_the_same_in_the_document(
    characters: object, tmp_path: Path, server: str, pacs: Pacs, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    texts: dict[str, object] = {"PatientName": "Wang^XiaoDong=王^小东", "StudyDescription": "超声 乳腺"}
    if characters == ["", "ISO 2022 IR 58"]:
        texts = {keyword: keyword[0] * len(escaped) for keyword, escaped in ESCAPED.items()}
    study = study_of(SpecificCharacterSet=characters, **texts)
    (path,) = write(tmp_path / "in", still(study, 1))
    for keyword, escaped in ESCAPED.items():
        path.write_bytes(path.read_bytes().replace(keyword[0].encode() * len(escaped), escaped))
    with running_node(tmp_path / "spool", server, destination=(pacs.name,)) as node:
        store(node, [path])
        wait_for(lambda: pacs.documents())
        kept = record(node, study)
    (document,) = pacs.documents()
    assert str(document.PatientName) == "Wang^XiaoDong=王^小东" and kept["region"] == "breast"
    assert not any(word in caplog.text for word in ("王", "XiaoDong", "超声"))


def test_another_patients_images_are_left_out_by_name(
    tmp_path: Path, server: str, pacs: Pacs, caplog: pytest.LogCaptureFixture
) -> None:
    study, other = study_of(patient="A-1"), "B-2"
    images = [
        still(study, 1),
        still({**study, "PatientID": other}, 2),
        cine({**study, "PatientID": other}, 3),
        still({**study, "PatientID": "A-1 "}, 4),
    ]
    with running_node(tmp_path / "spool", server, destination=(pacs.name,)) as node:
        assert store(node, write(tmp_path / "in", *images)) == {}
        wait_for(lambda: pacs.documents())
        assert [uid for uid, _ in record(node, study)["instances"]] == [
            images[0].SOPInstanceUID,
            images[3].SOPInstanceUID,
        ]
    (document,) = pacs.documents()
    assert document.PatientID == "A-1"
    comments = " ".join(texts_of(document)["Comment"])
    assert "2 states another patient; 3 states another patient" in comments
    assert "state another patient" in caplog.text and other not in caplog.text and other not in comments


def test_a_document_that_cannot_be_made_fails_its_study_and_no_other(
    tmp_path: Path, server: str, pacs: Pacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(working, "LONGEST_PAUSE", 0.05)
    made, good, bad = documents.structured_report, study_of(), study_of(patient="BAD")

    def refuse_one(result: object, sources: list[SourceImage], *rest: object) -> bytes:
        if sources[0].header.PatientID == "BAD":
            raise ValueError("Sekret")
        return made(result, sources, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(documents, "structured_report", refuse_one)
    with running_node(tmp_path / "spool", server, destination=(pacs.name,)) as node:
        store(node, write(tmp_path / "in", still(bad, 1), still(good, 2)))
        uid = str(bad["StudyInstanceUID"])
        wait_for(lambda: node.spool.studies.find(uid).state == "failed")
        assert "cannot be made (ValueError)" in node.spool.studies.find(uid).reason
        wait_for(lambda: pacs.documents(good["StudyInstanceUID"]))
