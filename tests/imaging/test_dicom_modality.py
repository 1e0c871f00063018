"""A DICOM file that is not ultrasound says so in its notes, whether Modality or the SOP class says it."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.uid import (
    CTImageStorage,
    EnhancedUSVolumeStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
    VLPhotographicImageStorage,
    XRayAngiographicImageStorage,
)

from echovlm_edge.runtime.contracts.request import ImageInput
from echovlm_edge.runtime.imaging.dicom.reading import decode
from tests.support.dicom_files import saved, shipped, ultrasound

TRAINED = "EchoVLM was trained on ultrasound."
US = UltrasoundImageStorage


def notes(data: bytes) -> tuple[str, ...]:
    ((_, source),) = decode(ImageInput(data), 64_000_000, 64)
    return source.notes


@pytest.mark.parametrize(
    ("modality", "sop_class", "said"),
    [
        ("CT", CTImageStorage, "Modality CT"),
        ("MR", US, "Modality MR"),
        (["CR", "US"], US, "Modality CR"),
        ("XA", None, "Modality XA"),
        ("SR", SecondaryCaptureImageStorage, "Modality SR"),
        ("ES", VLPhotographicImageStorage, "Modality ES"),
        (None, CTImageStorage, "CT Image Storage"),
        ("OT", XRayAngiographicImageStorage, "X-Ray Angiographic Image Storage"),
        ("US", CTImageStorage, "CT Image Storage"),
    ],
)
def test_what_is_not_ultrasound_is_noted(modality: object, sop_class: str | None, said: str) -> None:
    dataset = ultrasound(np.zeros((32, 32), np.uint8), "MONOCHROME2", Modality=modality, SOPClassUID=sop_class)
    assert notes(saved(dataset)) == (f"The file says {said}; {TRAINED}",)


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
@pytest.mark.parametrize("modality", ["US", "us ", "IVUS", "OT", "", None, "SECRET^PATIENT", "EC"])
@pytest.mark.parametrize(
    "sop_class",
    [
        *(UltrasoundImageStorage, UltrasoundMultiFrameImageStorage, EnhancedUSVolumeStorage),
        *(SecondaryCaptureImageStorage, MultiFrameTrueColorSecondaryCaptureImageStorage, VLPhotographicImageStorage),
        *("1.2.840.10008.5.1.4.1.1.6", "1.2.826.0.1.3680043.9", "1.2.840.10008.1.2.1", "", None),
    ],
)
def test_ultrasound_and_what_states_nothing_have_no_note(modality: object, sop_class: str | None) -> None:
    dataset = ultrasound(np.zeros((32, 32), np.uint8), "MONOCHROME2", Modality=modality, SOPClassUID=sop_class)
    assert notes(saved(dataset)) == ()


def test_files_of_real_scanners_are_noted() -> None:
    assert notes(shipped("CT_small.dcm"))[0] == f"The file says Modality CT; {TRAINED}"
    assert notes(shipped("MR_small.dcm"))[0] == f"The file says Modality MR; {TRAINED}"
