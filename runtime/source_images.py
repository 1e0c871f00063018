"""What a document says of the images that a text was written about: identifiers read by the client from the files it sends.

They are read here and not by the server, so that who the patient is never enters the server's memory beyond the files' bytes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import pydicom
from pydicom.dataset import Dataset

from echovlm_edge.runtime.errors import InvalidInput
from echovlm_edge.runtime.imaging.dicom.reading import choose_frames
from echovlm_edge.runtime.imaging.image_file import ImageLimits
from echovlm_edge.runtime.request import ImageInput

REFERENCES = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
# Type 2 of the Patient and General Study modules: copied where they are, else empty.
PATIENT_AND_STUDY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)


@dataclass(frozen=True)
class SourceImage:
    """One DICOM image: its header without pixels, and which of its frames were read (counted from 1; empty for a single one)."""

    header: Dataset = field(repr=False)
    frames: tuple[int, ...]


def source_images(images: Sequence[ImageInput]) -> list[SourceImage]:
    """The DICOM files among the images.

    Raises:
        InvalidInput: one cannot be read, lacks an identifier, or is another patient's than the first.
    """
    sources = [_source(image) for image in images if _is_dicom(image)]
    for source, image in zip(sources, filter(_is_dicom, images), strict=True):
        if source.header.PatientID != sources[0].header.PatientID:
            raise InvalidInput(f"{image.name} is of another patient than the first image: ask about one at a time.")
    return sources


def _is_dicom(image: ImageInput) -> bool:
    return image.media_type == "application/dicom" or image.data[128:132] == b"DICM"


def _source(image: ImageInput) -> SourceImage:
    try:
        # Up to the pixels, with none of the private elements that a document has no use for.
        whole = pydicom.dcmread(io.BytesIO(image.data), stop_before_pixels=True, force=True)
        header = Dataset()
        for keyword in REFERENCES + PATIENT_AND_STUDY:
            setattr(header, keyword, whole.get(keyword, None) or "")
        frames = int(whole.get("NumberOfFrames", 1) or 1)
    except Exception:  # the parser raises whatever the damaged bytes lead it to; its text may quote the patient
        raise InvalidInput(f"{image.name} cannot be read as DICOM: it is truncated or damaged.") from None
    missing = [keyword for keyword in REFERENCES if not header.get(keyword)]
    if missing:
        raise InvalidInput(f"{image.name} lacks the DICOM attribute {missing[0]}: a document cannot refer to it.")
    if frames == 1:
        return SourceImage(header, ())
    chosen = choose_frames(image.name, frames, image.selection, ImageLimits().max_frames)
    return SourceImage(header, tuple(index + 1 for index in chosen))
