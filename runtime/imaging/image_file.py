"""Decode image files to RGB frames: DICOM, pictures and videos; a file that is not what it claims is refused first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.contracts.origins import ANYBODY, PROCESS_KEY, Origin, digest
from echovlm_edge.runtime.contracts.request import Box, Frame, ImageInput, Resolution, Source
from echovlm_edge.runtime.formats.dicom_frames import frames_to_read
from echovlm_edge.runtime.formats.media_types import ACCEPTED, DICOM, KINDS, TAKEN, VIDEOS, sniff
from echovlm_edge.runtime.formats.video_formats import HEAD_BYTES
from echovlm_edge.runtime.imaging import pictures, video
from echovlm_edge.runtime.imaging.dicom import reading as dicom
from echovlm_edge.runtime.imaging.preprocess import smart_resize
from echovlm_edge.runtime.imaging.sandbox.samples import ENCODINGS, VIDEO_STREAMS, decodes
from echovlm_edge.runtime.imaging.undecodable import Undecodable


@dataclass(frozen=True)
class ImageLimits:
    """Limits of what is decoded; anything larger is refused from its header."""

    max_bytes: int = 1 << 30
    max_pixels: int = 64_000_000  # of one frame
    max_frames: int = 64  # of one request's file


Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Measured:
    """A file's properties according to its headers.

    Attributes:
        resolution: the model's resolution for which the sizes hold.
        sizes: [height, width] of each requested frame, once it is resized to that resolution.
        origin: the patient and study of the file.
    """

    resolution: Resolution
    sizes: tuple[tuple[int, int], ...]
    origin: Origin = ANYBODY


def measure_image(
    image: ImageInput, resolution: Resolution, limits: ImageLimits = ImageLimits(), key: bytes = PROCESS_KEY
) -> Measured:
    """Read the sizes of a file's frames and its origin, from its headers alone; `key` is that of the origin's digests.

    Raises:
        InvalidInput: as `decode_image`, as far as headers show it, and for frames whose shape the model cannot take.
        NotPossibleHere: as `decode_image`.
    """
    with _broken_decoder_named():
        return _measured(image, resolution, limits, key)


def _measured(image: ImageInput, resolution: Resolution, limits: ImageLimits, key: bytes) -> Measured:
    kind, origin = _kind(image, limits), ANYBODY
    _check_original(image)
    if kind == DICOM:
        header = dicom.read_header(image, limits.max_pixels, limits.max_frames)
        sizes = ((header.height, header.width),) * len(header.frames)
        origin = Origin(
            digest("PatientID", header.patient_id, key), digest("StudyInstanceUID", header.study_instance_uid, key)
        )
    elif kind in VIDEOS:
        found = _video_header(image, limits)
        frames = frames_to_read(image, found.count, limits.max_frames)
        sizes = ((found.height, found.width),) * len(frames)
    else:
        sizes = pictures.measure(image, kind, limits.max_pixels, limits.max_frames)
    fitted = (smart_resize(height, width, resolution, image.name) for height, width in sizes)
    return Measured(resolution, tuple(fitted), origin)


def decode_image(
    image: ImageInput, limits: ImageLimits = ImageLimits(), finish: Callable[[Pixels], Pixels] = lambda pixels: pixels
) -> list[Frame]:
    """Decode the requested frames of a file, in the requested order; `finish` is applied to each before the next is decoded.

    Raises:
        InvalidInput: the file is of no known kind, not of the given media type, over a limit, damaged, or lacks a requested
            frame; the sentence names the image.
        NotPossibleHere: this process has no working decoder for the file.
    """
    with _broken_decoder_named():
        return _decoded(image, limits, finish)


def _decoded(image: ImageInput, limits: ImageLimits, finish: Callable[[Pixels], Pixels]) -> list[Frame]:
    kind = _kind(image, limits)
    _check_original(image)
    if kind == DICOM:
        decoded = dicom.decode(image, limits.max_pixels, limits.max_frames, finish)
        return [_frame(image, pixels, source) for pixels, source in decoded]
    if kind in VIDEOS:
        return _video_frames(image, limits, finish)
    shown = pictures.decode(image, kind, limits.max_pixels, limits.max_frames)
    return [_frame(image, finish(pixels), source) for pixels, source in shown]


@contextmanager
def _broken_decoder_named() -> Iterator[None]:
    """Blame the decoder, not the file, where the decoder refuses even its own sample file."""
    try:
        yield
    except Undecodable as refused:
        if refused.encoding not in ENCODINGS or decodes(refused.encoding):
            raise
        raise NotPossibleHere(
            f"{refused.name} cannot be decoded by this server: it has no decoder for {refused.called} that works."
        ) from None


def _video_header(image: ImageInput, limits: ImageLimits) -> video.VideoHeader:
    try:
        return video.measure(image.open(), image.name, limits.max_pixels)
    except InvalidInput:
        if not any(decodes(stream) for stream in VIDEO_STREAMS):
            raise NotPossibleHere(
                f"{image.name} cannot be decoded by this server: it has no decoder for video that works."
            ) from None
        raise


def _video_frames(image: ImageInput, limits: ImageLimits, finish: Callable[[Pixels], Pixels]) -> list[Frame]:
    """Decode a video; a damaged one ends where the damage begins, unless the request names a frame after it by its number."""
    found = _video_header(image, limits)

    def frames(there: int, notes: tuple[str, ...]) -> list[Frame]:
        indices = frames_to_read(image, there, limits.max_frames)
        size, box = (found.height, found.width), Box(0, 0, found.width, found.height)
        decoded = video.decode(image.open(), image.name, indices, limits.max_pixels)
        return [
            _frame(image, finish(pixels), Source(index, found.count, *size, box, notes=notes))
            for index, pixels in decoded
        ]

    try:
        return frames(found.count, found.notes)
    except video.CutShort as short:
        if image.selection.indices or image.original or not short.whole:
            raise
        return frames(short.whole, (*found.notes, f"{short.whole} of {found.count} frames are there."))


def _frame(image: ImageInput, pixels: Pixels, source: Source) -> Frame:
    """Make a frame, numbered as in the sender's original file."""
    if image.original:
        source = replace(source, index=image.original.numbers[source.index], count=image.original.count)
    return Frame(pixels, image.name if source.count == 1 else f"{image.name}, frame {source.index}", source=source)


def _check_original(image: ImageInput) -> None:
    """Refuse a file that was shortened to frames which its original cannot have."""
    if image.original is None:
        return
    numbers, count = image.original.numbers, image.original.count
    if not numbers or not all(0 <= number < count for number in numbers):
        raise InvalidInput(
            f"{image.name} has original frame numbers outside its {count} original frames: correct them."
        )


def _kind(image: ImageInput, limits: ImageLimits) -> str:
    """Determine the kind of a file, a key of `KINDS`."""
    if not len(image.data):
        raise InvalidInput(f"{image.name} is empty: send the file's bytes.")
    if len(image.data) > limits.max_bytes:
        raise InvalidInput(
            f"{image.name} has {len(image.data):,} bytes, more than {limits.max_bytes:,}: send a smaller file."
        )
    if image.media_type and image.media_type not in ACCEPTED:
        raise InvalidInput(f"{image.name} has media type {image.media_type}: send one of {', '.join(ACCEPTED)}.")
    found = sniff(image.open().read(HEAD_BYTES))
    if not found and image.media_type == DICOM:
        return DICOM  # without the preamble; the parser decides
    if not found:
        raise InvalidInput(f"{image.name} is of no known kind: send {TAKEN}.")
    if image.media_type and image.media_type not in KINDS[found]:
        raise InvalidInput(
            f"{image.name} was sent as {image.media_type} but is {KINDS[found][0]}: send the right media type."
        )
    return found
