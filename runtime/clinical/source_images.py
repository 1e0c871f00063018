"""Read the identifiers that a document states about its images, from the files that are sent.

The client reads them. The server does only where it is asked for a document (`/v1/reports`), and keeps nothing of them.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pydicom.dataset import Dataset

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.contracts.image_path import SentImage
from echovlm_edge.runtime.formats.dicom_attributes import without_escapes
from echovlm_edge.runtime.formats.dicom_frames import choose_frames, read_cine
from echovlm_edge.runtime.formats.dicom_header import read_attributes
from echovlm_edge.runtime.formats.dicom_pixel_data import stated_frames
from echovlm_edge.runtime.formats.media_types import DICOM, sniff
from echovlm_edge.runtime.formats.video_formats import HEAD_BYTES

REFERENCES = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
FRAMES = ("NumberOfFrames", "RepresentativeFrameNumber", "StartTrim", "StopTrim")
# Type 2 of the Patient and General Study modules: copied if present, otherwise empty.
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
    """One DICOM image.

    Attributes:
        header: its identifiers.
        frames: which of its frames were read, counted from 1; empty for a single-frame image.
        place: its place among all images of the call, counted from 1.
    """

    header: Dataset = field(repr=False)
    frames: tuple[int, ...]
    place: int


def source_images(images: Sequence[SentImage]) -> list[SourceImage]:
    """List the DICOM files among the images, with the frames that were asked for; their pixels are not read.

    Raises:
        InvalidInput: a file cannot be read, lacks an identifier, or is of another patient than the first.
    """
    sources = [_source(image, place) for place, image in enumerate(images, 1) if _is_dicom(image)]
    for source in sources:
        if _patient(source.header) != _patient(sources[0].header):
            name = images[source.place - 1].name
            raise InvalidInput(f"{name} is of another patient than the first image: ask about one at a time.")
    return sources


def _patient(header: Dataset) -> tuple[str, ...]:
    """Return what tells patients apart: the ID, or name and date of birth where there is none."""
    if header.PatientID:
        return (str(header.PatientID),)
    return "", str(header.PatientName), str(header.PatientBirthDate)


def as_shown(sources: Sequence[SourceImage], result: pb.Result) -> list[SourceImage]:
    """Replace the frames asked for by those that the model was shown, which can differ, for example for an interrupted cine."""
    shown: dict[int, set[int]] = {}
    for picture in result.pictures:
        frames = shown.setdefault(picture.image, set())  # 0 for a study's
        if picture.frame_count > 1:
            frames.add(picture.frame + 1)
    return [
        replace(source, frames=tuple(sorted(shown[source.place]))) if source.place in shown else source
        for source in sources
    ]


def _is_dicom(image: SentImage) -> bool:
    if image.media_type == DICOM:
        return True
    with image.open() as file:
        return sniff(file.read(HEAD_BYTES)) == DICOM


def _source(image: SentImage, place: int) -> SourceImage:
    try:
        with image.open() as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole, _ = read_attributes(file, (*REFERENCES, *PATIENT_AND_STUDY, *FRAMES), force=True)
        header = Dataset()
        for keyword in REFERENCES + PATIENT_AND_STUDY:
            setattr(header, keyword, without_escapes(whole.get(keyword, None)) or "")
        frames = stated_frames(whole)
        cine = read_cine(whole, frames, frames)
    except Exception:  # damaged bytes can raise anything in the parser; its text may quote the patient
        raise InvalidInput(f"{image.name} cannot be read as DICOM: it is truncated or damaged.") from None
    missing = [keyword for keyword in REFERENCES if not header.get(keyword)]
    if missing:
        raise InvalidInput(f"{image.name} lacks the DICOM attribute {missing[0]}: a document cannot refer to it.")
    if frames == 1:
        return SourceImage(header, (), place)
    chosen = choose_frames(image.name, frames, image.selection, sys.maxsize, cine)  # no limit here: the server has one
    return SourceImage(header, tuple(index + 1 for index in chosen), place)
