"""DICOM files to RGB frames: only the frames asked for are decoded, windowed and cropped to their B-mode regions."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, iter_pixels

from echovlm_edge.runtime.errors import InvalidInput, NotPossibleHere, UserError
from echovlm_edge.runtime.imaging.sandbox.samples import decodes
from echovlm_edge.runtime.request import Box, FrameSelection, ImageInput, Source

GRAY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")
TISSUE, TWO_DIMENSIONAL = 1, 1  # RegionDataType and RegionSpatialFormat, PS3.3 C.8.5.5.1
NO_MEMORY = ("Unable to allocate", "bad_alloc")  # numpy's and C++'s words, which pydicom puts into an error of its own

# pydicom logs what it finds odd in a file; the file's owner gets one sentence instead, and logs stay free of its contents.
logging.getLogger("pydicom").addHandler(logging.NullHandler())
logging.getLogger("pydicom").propagate = False


@dataclass(frozen=True)
class Header:
    """What a file says of itself: its chosen frames by their 0-based index, their size as shown, and whose they are."""

    frames: tuple[int, ...]
    height: int
    width: int
    patient_id: object = field(repr=False)
    study_instance_uid: object = field(repr=False)


def read_header(image: ImageInput, max_pixels: int, max_frames: int) -> Header:
    """What `decode` will give, without decoding.

    Raises:
        InvalidInput: see `decode`, as far as the header shows it.
    """
    with _opened(image, max_pixels, max_frames) as (dataset, indices, box):
        identifiers = (dataset.get("PatientID", None), dataset.get("StudyInstanceUID", None))
        return Header(tuple(indices), box.bottom - box.top, box.right - box.left, *identifiers)


def decode(
    image: ImageInput,
    max_pixels: int,
    max_frames: int,
    finish: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] = lambda pixels: pixels,
) -> list[tuple[NDArray[np.uint8], Source]]:
    """The chosen frames of a DICOM file: pixels uint8 [height, width, 3], and where they come from.

    `finish` is applied to each before the next is made.

    Raises:
        InvalidInput: not readable as DICOM, without pixels, of an unsupported kind, over a limit, or without those frames.
        NotPossibleHere: no decoder for its encoding works here.
    """
    with _opened(image, max_pixels, max_frames) as (dataset, indices, box):
        frames = _to_rgb(dataset, _stored_frames(image.name, dataset, indices))
        count, size = frame_count(image.name, dataset), (int(dataset.Rows), int(dataset.Columns))
        return [
            (finish(_crop(pixels, box)), Source(index, count, *size, box))
            for index, pixels in zip(indices, frames, strict=True)
        ]


@contextmanager
def _opened(image: ImageInput, max_pixels: int, max_frames: int) -> Iterator[tuple[Dataset, list[int], Box]]:
    """Read and check a file: its elements, the chosen frames and the box that is shown. What fails meanwhile is named as damage."""
    with warnings.catch_warnings(), _damage_named(image.name):
        warnings.simplefilter("ignore")
        dataset = _read(image)
        _check(image.name, dataset, max_pixels)
        indices = choose_frames(image.name, frame_count(image.name, dataset), image.selection, max_frames)
        yield dataset, indices, _shown_box(dataset, image.crop_to_regions)


@contextmanager
def _damage_named(name: str) -> Iterator[None]:
    """Whatever damaged values lead to, here or in a library, is said of the file. Its text may quote the patient: it is left out."""
    try:
        yield
    except (UserError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a decoder in Rust panics with what is no Exception
        raise InvalidInput(f"{name} cannot be decoded: it is damaged ({type(error).__name__}).") from None


def frame_count(name: str, dataset: Dataset) -> int:
    """How many frames the file says it has.

    Raises:
        InvalidInput: it does not say a number.
    """
    try:
        return max(1, int(dataset.get("NumberOfFrames", None) or 1))
    except (TypeError, ValueError):
        raise InvalidInput(f"{name} has a NumberOfFrames that is no number: send an undamaged file.") from None


def choose_frames(name: str, count: int, selection: FrameSelection, max_frames: int) -> list[int]:
    """The 0-based frames that a selection means in a file of `count` frames.

    Raises:
        InvalidInput: an index outside the file, or more frames than `max_frames`.
    """
    if selection.indices:
        for index in selection.indices:
            if not 0 <= index < count:
                raise InvalidInput(f"{name} has no frame {index}: it has {count}, counted from 0.")
        chosen = list(selection.indices)
    elif selection.evenly_spaced:
        wanted = min(selection.evenly_spaced, count)
        chosen = [count // 2] if wanted == 1 else [round(step * (count - 1) / (wanted - 1)) for step in range(wanted)]
    else:
        chosen = [count // 2]
    if len(chosen) > max_frames:
        raise InvalidInput(f"{name}: {len(chosen)} frames were asked for, at most {max_frames} are read from a file.")
    return chosen


def region_box(dataset: Dataset) -> Box | None:
    """The box around the B-mode regions that the file declares, or None where it declares none inside the image.

    Several B-mode regions (dual view) keep their union: the model is shown what the sonographer saw side by side.
    """
    height, width = int(dataset.Rows), int(dataset.Columns)
    boxes = [
        Box(
            max(0, int(region.RegionLocationMinX0)),
            max(0, int(region.RegionLocationMinY0)),
            min(width, int(region.RegionLocationMaxX1) + 1),
            min(height, int(region.RegionLocationMaxY1) + 1),
        )
        for region in dataset.get("SequenceOfUltrasoundRegions", None) or ()
        if region.get("RegionSpatialFormat") == TWO_DIMENSIONAL
        and region.get("RegionDataType") == TISSUE
        and all(f"RegionLocation{edge}" in region for edge in ("MinX0", "MinY0", "MaxX1", "MaxY1"))
    ]
    inside = [box for box in boxes if box.left < box.right and box.top < box.bottom]
    if not inside:
        return None
    return Box(
        min(box.left for box in inside),
        min(box.top for box in inside),
        max(box.right for box in inside),
        max(box.bottom for box in inside),
    )


def _read(image: ImageInput) -> Dataset:
    try:
        dataset = pydicom.dcmread(image.open(), force=image.media_type == "application/dicom")
        dataset.walk(lambda *_: None)  # elements are parsed when first looked at: damage shows here
    except MemoryError:
        raise
    except Exception:  # the parser raises whatever the damaged bytes lead it to; its text may quote the patient
        raise InvalidInput(f"{image.name} cannot be read as DICOM: it is truncated or damaged.") from None
    if "PixelData" not in dataset and "Rows" not in dataset:
        raise InvalidInput(f"{image.name} is a DICOM file without an image: send one with pixel data.")
    return dataset


def _check(name: str, dataset: Dataset, max_pixels: int) -> None:
    missing = [
        key
        for key in ("PixelData", "Rows", "Columns", "PhotometricInterpretation", "BitsAllocated")
        if key not in dataset
    ]
    if missing:
        raise InvalidInput(f"{name} lacks the DICOM attribute {missing[0]}: send a complete file.")
    if not dataset.PixelData:
        raise InvalidInput(f"{name} is a DICOM file whose pixel data is empty: send a complete file.")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if rows * columns > max_pixels:
        raise InvalidInput(
            f"{name} has {columns:,} x {rows:,} pixels, more than {max_pixels:,} in all: send a smaller one."
        )
    if dataset.PhotometricInterpretation not in GRAY + COLOUR:
        raise InvalidInput(
            f"{name} has photometric interpretation {_shown(dataset.PhotometricInterpretation)}, which is not supported."
        )
    if not hasattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID"):
        # A file without a header: the standard's default transfer syntax (PS3.5 section 10).
        dataset.ensure_file_meta()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian


def _shown(value: object) -> str:
    """A value of the file's, as it may stand in a sentence."""
    text = str(value)
    return text if text.isascii() and text.isprintable() and len(text) <= 100 else "unreadable"


def _stored_frames(name: str, dataset: Dataset, indices: Sequence[int]) -> list[NDArray[np.generic]]:
    try:
        return [np.array(frame) for frame in iter_pixels(dataset, indices=list(indices), raw=False)]
    except MemoryError:
        raise
    except Exception as error:  # as many kinds as there are decoders
        if any(shortage in str(error) for shortage in NO_MEMORY):
            raise MemoryError from None
        syntax = dataset.file_meta.TransferSyntaxUID
        if syntax.is_transfer_syntax and not decodes(syntax):
            raise NotPossibleHere(
                f"{name} cannot be decoded by this server: it has no decoder for {_shown(syntax.name)} that works."
            ) from None
        reason = "its pixel data is truncated or damaged" if syntax.is_transfer_syntax else "its encoding is unknown"
        kind = type(error).__name__
        raise InvalidInput(f"{name} cannot be decoded ({_shown(syntax.name)}): {reason} ({kind}).") from None


def _to_rgb(dataset: Dataset, frames: list[NDArray[np.generic]]) -> Iterator[NDArray[np.uint8]]:
    photometric = dataset.PhotometricInterpretation
    if photometric in GRAY:
        return (np.repeat(gray[..., None], 3, axis=2) for gray in _to_gray(dataset, frames))
    if photometric == "PALETTE COLOR":
        return (_to_bytes(apply_color_lut(frame, dataset)) for frame in frames)
    return (_to_bytes(frame) for frame in frames)  # decoding has already turned YBR into RGB


def _to_bytes(pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    unsigned = pixels.view(np.dtype(f"u{pixels.dtype.itemsize}"))
    narrow: NDArray[np.uint8] = (unsigned >> (8 * pixels.dtype.itemsize - 8)).astype(np.uint8)
    return narrow


def _to_gray(dataset: Dataset, frames: list[NDArray[np.generic]]) -> Iterator[NDArray[np.uint8]]:
    """Modality LUT, then the file's window, or the stored range for 8 bits, or the chosen frames' own range."""
    values = [apply_modality_lut(frame, dataset) for frame in frames]
    if "VOILUTSequence" in dataset or "WindowCenter" in dataset:
        shown = [apply_voi_lut(frame, dataset) for frame in values]
        low, high = _window_range(dataset, shown)
    else:
        shown = values
        eight_bits = (
            int(dataset.BitsStored) == 8 and "RescaleSlope" not in dataset and not dataset.get("PixelRepresentation", 0)
        )
        low, high = (0.0, 255.0) if eight_bits else (min(map(np.min, shown)), max(map(np.max, shown)))
    scale = 255 / (high - low) if high > low else 0.0
    for frame in shown:
        gray = np.clip((frame.astype(np.float32) - low) * scale, 0, 255)
        inverted = 255 - gray if dataset.PhotometricInterpretation == "MONOCHROME1" else gray
        yield np.rint(inverted).astype(np.uint8)


def _window_range(dataset: Dataset, shown: list[NDArray[np.generic]]) -> tuple[float, float]:
    """What apply_voi_lut's output spans: the stored bits' range, or the lookup table's."""
    if "VOILUTSequence" in dataset:
        return 0.0, float(2 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1)
    signed, bits = int(dataset.get("PixelRepresentation", 0)), int(dataset.BitsStored)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    return low * slope + intercept, high * slope + intercept


def _shown_box(dataset: Dataset, crop_to_regions: bool) -> Box:
    whole = Box(0, 0, int(dataset.Columns), int(dataset.Rows))
    return (region_box(dataset) if crop_to_regions else None) or whole


def _crop(pixels: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    if box == Box(0, 0, pixels.shape[1], pixels.shape[0]):
        return pixels
    return np.ascontiguousarray(pixels[box.top : box.bottom, box.left : box.right])
