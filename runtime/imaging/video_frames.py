"""Convert decoded video frames to RGB: colours, rotation, and square pixels."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

Pixels = NDArray[np.uint8]
WIDEST_PIXEL = 4  # a pixel aspect ratio beyond this, or below its inverse, cannot be real
UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED


def pixel_aspect(stream: VideoStream) -> Fraction:
    """Return a stream's pixel width divided by height; 1 where it states none, or an impossible one."""
    aspect = stream.sample_aspect_ratio or Fraction(1)
    return aspect if 1 / WIDEST_PIXEL <= aspect <= WIDEST_PIXEL else Fraction(1)


def aspect_notes(aspect: Fraction) -> tuple[str, ...]:
    """Return the notes about a picture whose pixels were made square."""
    if aspect == 1:
        return ()
    return (f"Its pixels are {aspect.numerator}:{aspect.denominator}, wide to high: it was stretched to square ones.",)


def squared_size(frame: VideoFrame, aspect: Fraction) -> tuple[int, int]:
    """Return height and width of a frame with square pixels: the shorter side is stretched, so that no pixel is lost."""
    height = round(frame.height / aspect) if aspect < 1 else frame.height
    return height, round(frame.width * aspect) if aspect > 1 else frame.width


def shown_size(frame: VideoFrame, aspect: Fraction) -> tuple[int, int]:
    """Return height and width of the result of `to_rgb`."""
    height, width = squared_size(frame, aspect)
    return (width, height) if _turn(frame).transposed else (height, width)


def to_rgb(frame: VideoFrame, aspect: Fraction) -> Pixels:
    """Convert a frame to RGB uint8 [height, width, 3], upright and with square pixels.

    YCbCr is converted by the matrix and the range that the frame states, else by BT.601 and the limited range, as the ffmpeg
    program does it. In frames that are marked as interlaced, each field has its own chroma.
    """
    full = frame.format.name.startswith(("yuvj", "gray"))
    shown = frame.reformat(
        format="rgb24",
        src_colorspace="ITU601" if frame.colorspace == UNSPECIFIED else None,
        src_color_range=("JPEG" if full else "MPEG") if frame.color_range == 0 else None,
        dst_color_range="JPEG",
        interpolation="BICUBIC",
        threads=1,
    )
    pixels = shown.to_ndarray()
    height, width = squared_size(frame, aspect)
    if (height, width) != pixels.shape[:2]:
        pixels = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
    turn = _turn(frame)
    upright = pixels.transpose(1, 0, 2) if turn.transposed else pixels
    return np.ascontiguousarray(upright[:: -1 if turn.flipped else 1, :: -1 if turn.mirrored else 1])


@dataclass(frozen=True)
class _Turn:
    """How a stored frame becomes upright: first a transposition, then each axis may be reversed."""

    transposed: bool = False
    mirrored: bool = False  # columns
    flipped: bool = False  # rows


def _turn(frame: VideoFrame) -> _Turn:
    """Read the display matrix (ISO/IEC 14496-12, 8.3.2); angles other than quarter turns are ignored."""
    side_data = cast("Mapping[str, bytes]", frame.side_data)
    if "DISPLAYMATRIX" not in side_data:
        return _Turn()
    a, b, _, c, d = struct.unpack("=5i", bytes(side_data["DISPLAYMATRIX"])[:20])  # x' = ax + cy, y' = bx + dy
    if b == c == 0:
        return _Turn(False, a < 0, d < 0)
    return _Turn(True, c < 0, b < 0) if a == d == 0 else _Turn()
