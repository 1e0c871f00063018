"""Encoded image files to RGB frames: DICOM, PNG and JPEG, refused before decoding where they are not what they say."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from echovlm_edge.runtime.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.imaging import png_chunks
from echovlm_edge.runtime.imaging.dicom import reading as dicom
from echovlm_edge.runtime.imaging.origins import ANYBODY, PROCESS_KEY, Origin, digest
from echovlm_edge.runtime.imaging.preprocess import smart_resize
from echovlm_edge.runtime.imaging.sandbox.samples import JPEG, PNG, decodes
from echovlm_edge.runtime.request import Box, Frame, ImageInput, Resolution, Source

DICOM = "application/dicom"
MEDIA_TYPES = (DICOM, PNG, JPEG)


@dataclass(frozen=True)
class ImageLimits:
    """What is decoded at all; anything larger is refused from its header."""

    max_bytes: int = 256 << 20
    max_pixels: int = 64_000_000  # of one frame
    max_frames: int = 64  # of one request's file


Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Measured:
    """What a file's headers say.

    Attributes:
        resolution: what the sizes are for.
        sizes: [height, width] of each frame asked for, once it is fitted to that resolution.
        origin: whose it is.
    """

    resolution: Resolution
    sizes: tuple[tuple[int, int], ...]
    origin: Origin = ANYBODY


def measure_image(
    image: ImageInput, resolution: Resolution, limits: ImageLimits = ImageLimits(), key: bytes = PROCESS_KEY
) -> Measured:
    """What decoding a file will give, from its headers alone; `key` is that of the digests in the origin.

    Raises:
        InvalidInput: see `decode_image`, as far as headers show it; frames of a shape that the model cannot be shown.
    """
    if _media_type(image, limits) != DICOM:
        height, width = _picture_size(image, limits)
        return Measured(resolution, (smart_resize(height, width, resolution, image.name),))
    header = dicom.read_header(image, limits.max_pixels, limits.max_frames)
    size = smart_resize(header.height, header.width, resolution, image.name)
    origin = Origin(
        digest("PatientID", header.patient_id, key), digest("StudyInstanceUID", header.study_instance_uid, key)
    )
    return Measured(resolution, (size,) * len(header.frames), origin)


def decode_image(
    image: ImageInput, limits: ImageLimits = ImageLimits(), finish: Callable[[Pixels], Pixels] = lambda pixels: pixels
) -> list[Frame]:
    """The frames of one encoded file, in the order asked for; `finish` is applied to each before the next is made.

    Raises:
        InvalidInput: not an image of the kinds above, not of the media type given, over a limit, damaged, or without
            the frames asked for; the sentence names the image.
        NotPossibleHere: this process has no decoder that works for it.
    """
    if _media_type(image, limits) == DICOM:
        decoded = dicom.decode(image, limits.max_pixels, limits.max_frames, finish)
        return [_frame(image, pixels, source) for pixels, source in decoded]
    pixels = _decode_picture(image, limits)
    height, width = pixels.shape[:2]
    source = Source(0, 1, height, width, Box(0, 0, width, height))
    return [Frame(finish(pixels), image.name, source=source)]


def _frame(image: ImageInput, pixels: Pixels, source: Source) -> Frame:
    """Name a frame, and number it as in the file that the sender has."""
    if image.original:
        source = replace(source, index=image.original.numbers[source.index], count=image.original.count)
    return Frame(pixels, f"{image.name}, frame {source.index}", source=source)


def _media_type(image: ImageInput, limits: ImageLimits) -> str:
    if not image.data:
        raise InvalidInput(f"{image.name} is empty: send the file's bytes.")
    if len(image.data) > limits.max_bytes:
        raise InvalidInput(
            f"{image.name} has {len(image.data):,} bytes, more than {limits.max_bytes:,}: send a smaller file."
        )
    found = _sniff(image.data)
    if image.media_type and image.media_type not in MEDIA_TYPES:
        raise InvalidInput(f"{image.name} has media type {image.media_type}: send one of {', '.join(MEDIA_TYPES)}.")
    if not found and image.media_type == DICOM:
        return DICOM  # without the preamble; the parser decides
    if not found:
        raise InvalidInput(f"{image.name} is neither DICOM nor PNG nor JPEG: send one of these.")
    if image.media_type and image.media_type != found:
        raise InvalidInput(f"{image.name} was sent as {image.media_type} but is {found}: send the right media type.")
    return found


def _sniff(data: bytes) -> str:
    if data[128:132] == b"DICM":
        return DICOM
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    return JPEG if data.startswith(b"\xff\xd8\xff") else ""


def _decode_picture(image: ImageInput, limits: ImageLimits) -> Pixels:
    with _opened(image, image.data, limits) as picture:
        picture.load()
        upright = ImageOps.exif_transpose(picture)
    return np.asarray(_to_rgb(upright))


def _picture_size(image: ImageInput, limits: ImageLimits) -> tuple[int, int]:
    """Height and width of a picture turned as its camera says."""
    with _opened(image, png_chunks.texts_first(image.data), limits) as picture:
        turned = Image.Image.getexif(picture).get(ExifTags.Base.Orientation, 1)  # PNG's own would decode the pixels
        return (picture.width, picture.height) if turned in (5, 6, 7, 8) else (picture.height, picture.width)


@contextmanager
def _opened(image: ImageInput, data: bytes, limits: ImageLimits) -> Iterator[Image.Image]:
    if image.selection.indices not in ((), (0,)):
        raise InvalidInput(f"{image.name} has one frame: leave the frame selection out.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own bomb warning: the limit here is stricter
            picture = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
            check_size(image.name, picture.width, picture.height, limits.max_pixels)
            yield picture
    except Image.DecompressionBombError:  # from the header: Pillow's own limit lies above the one here
        raise InvalidInput(f"{image.name} has more than {limits.max_pixels:,} pixels: send a smaller one.") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, struct.error) as error:
        encoding = _sniff(data)
        if not decodes(encoding):
            raise NotPossibleHere(
                f"{image.name} cannot be decoded by this server: it has no decoder for {encoding} that works."
            ) from None
        raise InvalidInput(f"{image.name} is truncated or damaged and cannot be decoded ({error}).") from None


def check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    """Refuse a picture by the size that its header states.

    Raises:
        InvalidInput: it has more than `max_pixels`.
    """
    if width * height > max_pixels:
        raise InvalidInput(
            f"{name} has {width:,} x {height:,} pixels, more than {max_pixels:,} in all: send a smaller one."
        )


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16-bit gray, which Pillow would clip instead of scale
        return Image.fromarray((np.asarray(picture, dtype=np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if "A" in picture.getbands() or "transparency" in picture.info:
        visible = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", visible.size, "black"), visible).convert("RGB")
    return picture.convert("RGB")
