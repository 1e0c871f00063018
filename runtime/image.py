"""Encoded image files to RGB frames: DICOM, PNG and JPEG, refused before decoding where they are not what they say."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from echovlm_edge.runtime import dicom
from echovlm_edge.runtime.errors import InvalidInput
from echovlm_edge.runtime.request import Frame, ImageInput

PNG, JPEG, DICOM = "image/png", "image/jpeg", "application/dicom"
MEDIA_TYPES = (DICOM, PNG, JPEG)


@dataclass(frozen=True)
class ImageLimits:
    """What is decoded at all; anything larger is refused from its header."""

    max_bytes: int = 256 << 20
    max_pixels: int = 64_000_000  # of one frame
    max_frames: int = 64  # of one request's file


def decode_image(image: ImageInput, limits: ImageLimits = ImageLimits()) -> list[Frame]:
    """The frames of one encoded file, in the order asked for.

    Raises:
        InvalidInput: not an image of the kinds above, not of the media type given, over a limit, damaged, or without
            the frames asked for; the sentence names the image.
    """
    if not image.data:
        raise InvalidInput(f"{image.name} is empty: send the file's bytes.")
    if len(image.data) > limits.max_bytes:
        raise InvalidInput(
            f"{image.name} has {len(image.data):,} bytes, more than {limits.max_bytes:,}: send a smaller file."
        )
    if _media_type(image) == DICOM:
        decoded = dicom.decode(image, limits.max_pixels, limits.max_frames)
        return [Frame(pixels, f"{image.name}, frame {index}") for index, pixels in decoded]
    return [Frame(_decode_picture(image, limits), image.name)]


def _media_type(image: ImageInput) -> str:
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


def _decode_picture(image: ImageInput, limits: ImageLimits) -> NDArray[np.uint8]:
    if image.selection.indices not in ((), (0,)):
        raise InvalidInput(f"{image.name} has one frame: leave the frame selection out.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own bomb warning: the limit here is stricter
            picture = Image.open(io.BytesIO(image.data), formats=("PNG", "JPEG"))
            check_size(image.name, picture.width, picture.height, limits.max_pixels)
            picture.load()
    except Image.DecompressionBombError:  # from the header: Pillow's own limit lies above the one here
        raise InvalidInput(f"{image.name} has more than {limits.max_pixels:,} pixels: send a smaller one.") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise InvalidInput(f"{image.name} is truncated or damaged and cannot be decoded ({error}).") from None
    return np.asarray(_to_rgb(ImageOps.exif_transpose(picture)))


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
