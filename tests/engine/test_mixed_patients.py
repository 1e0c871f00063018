"""Images of two patients, or of two studies where that was not asked for: refused by the tag's name, never by its value."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.contracts.request import ImageInput
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.imaging.decoder import LocalDecoder
from echovlm_edge.runtime.imaging.sandbox.sandbox import DecodeSandbox, SandboxLimits
from tests.support.decoding import RESOLUTION
from tests.support.dicom_files import png, saved, ultrasound
from tests.support.running_server import Running, running

ONE, OTHER = "SECRET-ONE", "SECRET-OTHER"
SHORT = pb.Sampling(max_new_tokens=1)
OPTIONS, MIXED = pb.GenerationOptions(sampling=SHORT), pb.GenerationOptions(sampling=SHORT, allow_mixed_studies=True)


def dicom(patient: str | None = None, study: str | None = None, value: int = 9) -> bytes:
    stated = {"PatientID": patient, "StudyInstanceUID": study}
    given = {tag: text for tag, text in stated.items() if text is not None}
    return saved(ultrasound(np.full((64, 64, 3), value, np.uint8), **given))


@pytest.fixture(scope="module", params=["here", "sandbox"])
def served(golden_bundle: Path, request: pytest.FixtureRequest) -> Iterator[Running]:
    decoder = DecodeSandbox(SandboxLimits(processes=1)) if request.param == "sandbox" else LocalDecoder()
    with running(lambda: ReportEngine.open(golden_bundle, threads=1, image_decoder=decoder)) as server:
        yield server
    if isinstance(decoder, DecodeSandbox):
        decoder.close()


def ask(served: Running, *images: bytes, options: pb.GenerationOptions = OPTIONS, study: str = "") -> pb.Result:
    files = [pb.Image(data=data) for data in images]
    *_, last = served.stub.GenerateReport(pb.GenerateReportRequest(images=files, options=options, study=study))
    return last.result


def refused(call: grpc.RpcError) -> str:
    assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "SECRET" not in call.details() and "1.2.3" not in call.details()
    return str(call.details())


def test_two_patients_in_a_call(served: Running) -> None:
    for options in (OPTIONS, MIXED):
        with pytest.raises(grpc.RpcError) as error:
            ask(served, dicom(ONE), png(64, 64), dicom(OTHER), options=options)
        sentence = refused(error.value)
        assert sentence == "image 1 and image 3 differ in PatientID: send the images of one patient at a time."


def test_two_studies_in_a_call(served: Running) -> None:
    images = dicom(ONE, "1.2.3.4"), dicom(ONE, "1.2.3.5")
    with pytest.raises(grpc.RpcError) as error:
        ask(served, *images)
    assert refused(error.value).startswith("image 1 and image 2 differ in StudyInstanceUID: ")
    assert ask(served, *images, options=MIXED).usage.image_tokens > 0


def test_what_states_no_patient_is_anybodys(served: Running) -> None:
    images = png(64, 64), dicom(), dicom("  "), dicom(ONE), dicom(f"{ONE} "), dicom(f" {ONE}")
    assert ask(served, *images).usage.image_tokens > 0


def add(served: Running, study: str, data: bytes, mixed: bool = False) -> pb.AddedImage:
    image = pb.Image(data=data)
    return served.stub.AddImage(pb.AddImageRequest(study=study, image=image, allow_mixed_studies=mixed))


def test_two_patients_in_a_study(served: Running) -> None:
    study = served.stub.BeginStudy(pb.BeginStudyRequest()).id
    add(served, study, png(64, 64))
    add(served, study, dicom(ONE, "1.2.3.4"))
    for mixed in (False, True):
        with pytest.raises(grpc.RpcError) as error:
            add(served, study, dicom(OTHER, "1.2.3.4"), mixed)
        assert refused(error.value).startswith("image number 2 of the study and image 1 differ in PatientID: ")
    with pytest.raises(grpc.RpcError) as error:
        add(served, study, dicom(ONE, "1.2.3.5"))
    assert "differ in StudyInstanceUID" in refused(error.value)
    assert add(served, study, dicom(ONE, "1.2.3.5"), mixed=True).number == 3
    assert ask(served, study=study).usage.image_tokens > 0, "what was added with leave is asked about without"
    with pytest.raises(grpc.RpcError) as error:
        ask(served, dicom(OTHER), study=study, options=MIXED)
    assert refused(error.value).startswith("image number 2 of the study and image 1 differ in PatientID: ")
    served.stub.WithdrawImage(pb.WithdrawImageRequest(study=study, number=3))
    with pytest.raises(grpc.RpcError) as error:
        ask(served, dicom(ONE, "1.2.3.5"), study=study)
    assert "differ in StudyInstanceUID" in refused(error.value)
    assert ask(served, dicom(ONE, "1.2.3.5"), study=study, options=MIXED).usage.image_tokens > 0
    served.stub.EndStudy(pb.EndStudyRequest(study=study))


def test_nothing_of_who_it_is_is_kept() -> None:
    measured = LocalDecoder().measure(ImageInput(dicom(ONE, "1.2.3.4")), RESOLUTION)
    assert measured.origin.patient and measured.origin.study
    assert "SECRET" not in repr(measured) and measured.origin.patient.hex() not in repr(measured)
    assert len({measured.origin.patient, measured.origin.study}) == 2
