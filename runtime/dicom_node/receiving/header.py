"""Read what the node needs of an instance: identifiers, what it shows, and what kind of picture it is. Its pixels are not decoded."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameSingleBitSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
)

from echovlm_edge.runtime.clinical.source_images import PATIENT_AND_STUDY, REFERENCES
from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.formats.dicom_attributes import items, without_escapes
from echovlm_edge.runtime.formats.dicom_header import read_attributes
from echovlm_edge.runtime.formats.dicom_pixel_data import stated_frames
from echovlm_edge.runtime.formats.dicom_syntaxes import VIDEOS

ENHANCED_VOLUME = UID("1.2.840.10008.5.1.4.1.1.6.2")
IMAGES = (
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
    UID("1.2.840.10008.5.1.4.1.1.6"),  # retired ultrasound image and multi-frame, which old carts send
    UID("1.2.840.10008.5.1.4.1.1.3"),
    ENHANCED_VOLUME,
    SecondaryCaptureImageStorage,
    MultiFrameSingleBitSecondaryCaptureImageStorage,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
)
# What the choice of pictures and of the question reads.
DESCRIPTIONS = (
    *("BodyPartExamined", "StudyDescription", "SeriesDescription", "ProtocolName", "PerformedProcedureStepDescription"),
    *("AnatomicRegionSequence", "ProcedureCodeSequence", "RequestAttributesSequence", "SequenceOfUltrasoundRegions"),
    *("NumberOfFrames", "RepresentativeFrameNumber", "StartTrim", "StopTrim", "Modality"),
)
KEYWORDS = (*REFERENCES, *PATIENT_AND_STUDY, *DESCRIPTIONS)
MOST_ITEMS, LONGEST_TEXT = 64, 1024
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


@dataclass(frozen=True)
class InstanceHeader:
    """What was read of an instance; `attributes` are those of `KEYWORDS` that it has."""

    study_uid: str = field(repr=False)
    sop_instance: str = field(repr=False)
    sop_class: str
    kind: str
    attributes: Dataset = field(repr=False)

    def as_json(self) -> dict[str, Any]:
        """Convert the attributes to DICOM JSON (PS3.18 annex F)."""
        return dict(self.attributes.to_json_dict())


def read_header(path: Path) -> InstanceHeader:
    """Read the header of a file in `incoming/`.

    Raises:
        InvalidInput: it is no DICOM, is damaged, or lacks a UID. The sentence quotes nothing of it.
    """
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what pydicom warns of can quote the patient
        try:
            whole, syntax = read_attributes(file, KEYWORDS)
            attributes = _reduced(whole)
            frames = stated_frames(whole)
        except Exception:  # damaged bytes can raise anything in the parser; its text may quote the patient
            raise InvalidInput("The data set cannot be read: it is truncated or damaged.") from None
    for keyword in REFERENCES:
        value = str(attributes.get(keyword, ""))
        if len(value) > 64 or not _UID.fullmatch(value):
            raise InvalidInput(f"The data set has no valid {keyword}.")
    sop_class = str(attributes.SOPClassUID)
    kind = "cine" if frames > 1 or syntax in VIDEOS else "still"
    if sop_class not in IMAGES:
        kind = "other"
    return InstanceHeader(str(attributes.StudyInstanceUID), str(attributes.SOPInstanceUID), sop_class, kind, attributes)


def from_json(header: dict[str, Any]) -> Dataset:
    """Convert `InstanceHeader.as_json` back to a data set."""
    return Dataset.from_json(header)


def _reduced(whole: Dataset) -> Dataset:
    """Copy the attributes that are needed, with bounded lengths; one that is unreadable is left out, as viewers do."""
    reduced = Dataset()
    for keyword in KEYWORDS:
        try:
            value = without_escapes(whole.get(keyword))
            if value is None or value == "":
                continue
            if keyword.endswith("Sequence") or keyword == "SequenceOfUltrasoundRegions":
                value = [_item(item) for item in items(whole, keyword)[:MOST_ITEMS]]
            elif len(str(value)) > LONGEST_TEXT:
                continue
            setattr(reduced, keyword, value)
            reduced[keyword].to_json_dict(None, 1 << 20)
        except Exception:
            if keyword in reduced:
                delattr(reduced, keyword)
    return reduced


def _item(item: Dataset) -> Dataset:
    """Copy an item's own short values; nested sequences are left out."""
    copied = Dataset()
    for element in item:
        if element.VR not in ("SQ", "OB", "OW", "UN") and len(str(element.value)) <= LONGEST_TEXT:
            element.value = without_escapes(element.value)
            copied.add(element)
    return copied
