"""Decode DICOM files to RGB frames: only the requested frames are decoded, windowed and cropped to their B-mode regions."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from echovlm_edge.runtime.contracts.errors import InvalidInput, UserError
from echovlm_edge.runtime.contracts.request import Box, Examination, ImageInput, Source
from echovlm_edge.runtime.formats.dicom_attributes import value
from echovlm_edge.runtime.formats.dicom_frames import frames_to_read, interruption, read_cine
from echovlm_edge.runtime.formats.dicom_pixel_data import locate, transfer_syntax
from echovlm_edge.runtime.imaging.dicom import header as dicom_header
from echovlm_edge.runtime.imaging.dicom.aspect import resized, square_size
from echovlm_edge.runtime.imaging.dicom.examination import examination
from echovlm_edge.runtime.imaging.dicom.modality import not_ultrasound
from echovlm_edge.runtime.imaging.dicom.regions import shown_box
from echovlm_edge.runtime.imaging.dicom.still_frames import StillFrames, open_stills
from echovlm_edge.runtime.imaging.dicom.video_cine import VideoFrames, codec_of, open_video

SQUARED = "Its pixels are not square: it was stretched to square ones."

# pydicom logs what it finds odd in a file; the file's owner gets one sentence instead, and logs stay free of its contents.
logging.getLogger("pydicom").addHandler(logging.NullHandler())
logging.getLogger("pydicom").propagate = False


@dataclass(frozen=True)
class Header:
    """A file's chosen frames by their 0-based index, their size as shown, and their origin."""

    frames: tuple[int, ...]
    height: int
    width: int
    patient_id: object = field(repr=False)
    study_instance_uid: object = field(repr=False)


@dataclass(frozen=True)
class _File:
    """A file that was checked.

    Attributes:
        dataset: its header.
        frames: its frames.
        indices: the chosen frames.
        box: the part of each frame that is shown.
        size: height and width of that part once its pixels are square.
        notes: notes about each frame.
        examination: what the file says of what they show.
    """

    dataset: Dataset = field(repr=False)
    frames: StillFrames | VideoFrames
    indices: list[int]
    box: Box
    size: tuple[int, int]
    notes: tuple[str, ...]
    examination: Examination


def read_header(image: ImageInput, max_pixels: int, max_frames: int) -> Header:
    """Read the sizes and the origin of the frames that `decode` would return, without decoding.

    Raises:
        InvalidInput, NotPossibleHere: as `decode`, as far as the header shows it.
    """
    with _opened(image, max_pixels, max_frames) as file:
        identifiers = value(file.dataset, "PatientID"), value(file.dataset, "StudyInstanceUID")
        return Header(tuple(file.indices), *file.size, *identifiers)


def decode(
    image: ImageInput,
    max_pixels: int,
    max_frames: int,
    finish: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] = lambda pixels: pixels,
) -> list[tuple[NDArray[np.uint8], Source]]:
    """Decode the chosen frames of a DICOM file: pixels uint8 [height, width, 3], and the source of each.

    `finish` is applied to each frame before the next is decoded.

    Raises:
        InvalidInput: the file is not readable as DICOM, has no pixels, is of an unsupported kind or over a limit, or lacks a frame.
        NotPossibleHere: no decoder for the file's encoding works here.
    """
    with _opened(image, max_pixels, max_frames) as file:
        frames, box = file.frames, file.box
        found = []
        for index, picture in zip(file.indices, frames.pictures(file.indices), strict=True):
            size, notes = (frames.height, frames.width), (*file.notes, *picture.notes)
            source = Source(index, frames.stated, *size, box, picture.window, notes, file.examination)
            found.append((finish(resized(_crop(picture.pixels, box), file.size)), source))
        return found


@contextmanager
def _opened(image: ImageInput, max_pixels: int, max_frames: int) -> Iterator[_File]:
    """Read and check a file. An unexpected exception in the block is reported as damage."""
    with warnings.catch_warnings(), _damage_named(image.name), image.open() as stream:
        warnings.simplefilter("ignore")
        file, dataset = dicom_header.read_header(stream, image.name)
        syntax, pixel_data = transfer_syntax(dataset), locate(file, dataset, image.name)
        frames: StillFrames | VideoFrames
        if codec_of(syntax):
            frames = open_video(image.name, pixel_data, syntax, max_pixels)
        else:
            frames = open_stills(image.name, dataset, pixel_data, syntax, max_pixels)
        cine = read_cine(dataset, frames.count, frames.stated)
        indices = frames_to_read(image, frames.count, max_frames, cine)
        shown = shown_box(dataset, frames.height, frames.width, image.crop_to_regions)
        height, width = shown.box.bottom - shown.box.top, shown.box.right - shown.box.left
        size = square_size(dataset, height, width, max_pixels)
        notes = (
            not_ultrasound(dataset),
            interruption(frames.count, frames.stated),
            *shown.notes,
            SQUARED if size != (height, width) else "",
        )
        kept = tuple(note for note in notes if note)
        yield _File(dataset, frames, indices, shown.box, size, kept, examination(dataset, frames.height, frames.width))


@contextmanager
def _damage_named(name: str) -> Iterator[None]:
    """Report any exception, which damaged values can cause here or in a library, as damage, without its text: it may quote the patient."""
    try:
        yield
    except (UserError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in a Rust decoder is not an Exception
        raise InvalidInput(f"{name} cannot be decoded: it is damaged ({type(error).__name__}).") from None


def _crop(pixels: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    if box == Box(0, 0, pixels.shape[1], pixels.shape[0]):
        return pixels
    return np.ascontiguousarray(pixels[box.top : box.bottom, box.left : box.right])
