"""Cines whose pixel data is a video: MPEG-2, MPEG-4 AVC/H.264 and HEVC/H.265 (PS3.5 A.4.5 to A.4.9)."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pydicom.uid import UID, MPEGTransferSyntaxes

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.formats.dicom_pixel_data import PixelData
from echovlm_edge.runtime.imaging import video
from echovlm_edge.runtime.imaging.dicom.frame_decoder import syntax_name
from echovlm_edge.runtime.imaging.dicom.still_frames import Picture


def codec_of(syntax: UID) -> str:
    """Return the name of a transfer syntax's video codec; empty for a transfer syntax of still pictures."""
    if syntax not in MPEGTransferSyntaxes:
        return ""
    words = syntax_name(syntax)
    return next((codec for codec in ("H.264", "HEVC") if codec in words), "MPEG-2")


@dataclass(frozen=True)
class VideoFrames:
    """The frames of a video: their number, size and pixels.

    Attributes:
        height, width: of a frame as it is stored.
        count: whole frames that are there.
        stated: frames that the header says there are, or the video where the header says none.
    """

    height: int
    width: int
    count: int
    stated: int
    _name: str
    _codec: str
    _max_pixels: int
    _stream: bytes = field(repr=False)

    def pictures(self, indices: Sequence[int]) -> Iterator[Picture]:
        """Decode frames in the given order.

        Raises:
            InvalidInput: a frame is damaged.
            NotPossibleHere: this machine has no decoder for the video.
        """
        file = io.BytesIO(self._stream)
        for _, pixels in video.decode(
            file, self._name, indices, self._max_pixels, codec=self._codec, square_pixels=False, stated=self.stated
        ):
            yield Picture(pixels)


def open_video(name: str, pixel_data: PixelData, syntax: UID, max_pixels: int) -> VideoFrames:
    """Read a video's number of frames and their size. Error sentences name the encoding that the file states.

    Raises:
        InvalidInput: the file contains no readable video.
        NotPossibleHere: this machine has no decoder for the video.
    """
    named, codec, stream = f"{name} ({syntax_name(syntax)})", codec_of(syntax), pixel_data.stream()
    try:
        found = video.measure(
            io.BytesIO(stream), named, max_pixels, codec=codec, square_pixels=False, stated=pixel_data.stated
        )
    except InvalidInput:
        raise InvalidInput(
            f"{name} holds no {syntax_name(syntax)} video of up to {max_pixels:,} pixels that can be read: send a correct file."
        ) from None
    stated = pixel_data.stated if pixel_data.stated > 1 else found.count
    count = min(found.count, stated)  # encoders add frames after the last one that was recorded
    return VideoFrames(found.height, found.width, count, stated, named, codec, max_pixels, stream)
