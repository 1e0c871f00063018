"""Video files and streams to RGB frames, by FFmpeg's libraries (PyAV): MP4, QuickTime, AVI, Matroska, MPEG streams, raw H.264 and HEVC.

Frames are numbered as they are shown, from 0. YCbCr becomes RGB as FFmpeg's program does it: by the matrix and the range that the
stream states, else BT.601 and the limited range. Interlaced frames keep both of their fields. Frames are turned upright as the file
says, and pixels that are not square are made so. The decoder runs in the calling thread.
"""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from echovlm_edge.runtime.errors import InvalidInput, NotPossibleHere

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

Pixels = NDArray[np.uint8]

# FFmpeg's demuxers that may be opened, and what a file of them is called where nothing more is known.
FORMATS = {
    "mov": "MP4 or QuickTime",
    "avi": "AVI",
    "matroska": "Matroska",
    "mpeg": "MPEG-2",
    "mpegts": "MPEG transport stream",
    "mpegvideo": "MPEG-2",
    "m4v": "MPEG-4",
    "h264": "H.264",
    "hevc": "HEVC",
}
# FFmpeg's decoders that may run, each written in C without threads of its own, and their names.
CODECS = {
    "mpeg1video": "MPEG-1",
    "mpeg2video": "MPEG-2",
    "mpeg4": "MPEG-4",
    "h264": "H.264",
    "hevc": "HEVC",
    "mjpeg": "Motion JPEG",
    "rawvideo": "uncompressed",
    "ffv1": "FFV1",
    "huffyuv": "HuffYUV",
    "ffvhuff": "HuffYUV",
    "utvideo": "Ut Video",
    "png": "PNG",
    "dvvideo": "DV",
    "prores": "ProRes",
    "msmpeg4v1": "Microsoft MPEG-4",
    "msmpeg4v2": "Microsoft MPEG-4",
    "msmpeg4": "Microsoft MPEG-4",
    "msmpeg4v3": "Microsoft MPEG-4",
    "msvideo1": "Microsoft Video 1",
    "msrle": "Microsoft RLE",
    "cinepak": "Cinepak",
    "qtrle": "QuickTime Animation",
    "vp8": "VP8",
    "vp9": "VP9",
}
INDEXED = ("mov", "matroska", "avi")  # those that state when every frame is shown
HEAD_BYTES = 1024  # enough for `container_format`
MAX_PIXELS = 64_000_000  # of one frame
MAX_FRAMES = 100_000  # of a file: hours of cine; an index of more is not read
WIDEST_PIXEL = 4  # an aspect ratio of pixels beyond this, or its inverse, is no pixel's
UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED


@dataclass(frozen=True)
class VideoHeader:
    """What a video holds: its codec's name, the whole frames, their size as shown in pixels, and what to know about them."""

    codec: str
    count: int
    height: int
    width: int
    notes: tuple[str, ...] = ()


class CutShort(InvalidInput):
    """A frame that was asked for is damaged, or behind damage.

    Attributes:
        whole: how many frames from the start are whole.
    """

    def __init__(self, name: str, index: int, whole: int) -> None:
        """Say which of the frames cannot be decoded, and which can."""
        super().__init__(
            f"{name} is truncated or damaged: frame {index} cannot be decoded, its first {whole} are whole."
        )
        self.whole = whole


@dataclass(frozen=True)
class _Packet:
    """An encoded frame: when it is shown, in the stream's time base, and whether decoding can begin with it."""

    time: int | None
    key: bool


@dataclass(frozen=True)
class _Video:
    """A file, and what is asked of it."""

    file: BinaryIO = field(repr=False)
    name: str
    max_pixels: int
    codec: str
    square_pixels: bool


def container_format(head: bytes) -> str:
    """FFmpeg's name of a container or raw stream by the file's first `HEAD_BYTES`; empty where it is none that is read."""
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"):
        return "mov"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    for first, size in ((0, 188), (4, 192)):  # packets of a transport stream, plain and with a time before each
        if len(head) > first + 2 * size and all(head[first + step * size] == 0x47 for step in range(3)):
            return "mpegts"
    return _raw_format(head)


def _raw_format(head: bytes) -> str:
    start = re.match(rb"\0{2,64}\x01(..)", head, re.DOTALL)
    if not start:
        return ""
    first, second = start[1]
    if first in (0xBA, 0xB3, 0xB0):  # a pack, a sequence, a visual object sequence
        return {0xBA: "mpeg", 0xB3: "mpegvideo", 0xB0: "m4v"}[first]
    # Unit types of H.265 (7.3.1.2): VPS, SPS, access unit delimiter, prefix SEI; layer 0.
    if first & 0x81 == 0 and first >> 1 in (32, 33, 35, 39) and second >> 3 == 0 and second & 7:
        return "hevc"
    # Unit types of H.264 (7.3.1): SEI, SPS, access unit delimiter.
    return "h264" if first & 0x80 == 0 and first & 0x1F in (6, 7, 9) else ""


def measure(
    file: BinaryIO, name: str, max_pixels: int = MAX_PIXELS, codec: str = "", square_pixels: bool = True
) -> VideoHeader:
    """Find how many whole frames a video has and their size: from its packets where they show it, else by decoding.

    Args:
        file: to read from; it is left anywhere.
        name: what sentences call it.
        max_pixels: of a frame.
        codec: what the video is called where no decoder is installed: "H.264".
        square_pixels: make pixels square that are not; without it frames have the size that is stored.

    Raises:
        InvalidInput: no video that is read, larger than that, or without a whole frame.
        NotPossibleHere: there is no decoder for it.
    """
    video = _Video(file, name, max_pixels, codec, square_pixels)
    with _opened(video) as (container, stream):
        packets = _packets(video, container, stream)
        count = len(packets) if _seekable(container, stream, packets) else 0
    with _opened(video) as (container, stream):
        frames = _shown(container, stream)
        first = next(frames, None)
        if first is None:
            raise InvalidInput(f"{name} is truncated or damaged: none of its frames can be decoded.")
        aspect = _pixel_aspect(video, stream)
        height, width = _shown_size(video, first, aspect)
        count = count or 1 + sum(1 for _ in frames)
        return VideoHeader(CODECS[stream.codec_context.name], count, height, width, _notes(aspect))


def decode(
    file: BinaryIO,
    name: str,
    indices: Sequence[int],
    max_pixels: int = MAX_PIXELS,
    codec: str = "",
    square_pixels: bool = True,
) -> Iterator[tuple[int, Pixels]]:
    """Decode frames of a video: each index with RGB uint8 [height, width, 3], in the order of `indices`.

    No more is decoded than what leads to them: from the key frame before, where the container's times can be relied on.

    Raises:
        CutShort: one of them is damaged, or behind damage.
        InvalidInput, NotPossibleHere: see `measure`.
    """
    video = _Video(file, name, max_pixels, codec, square_pixels)
    last_use = {index: place for place, index in enumerate(indices)}
    frames, found = _wanted(video, sorted(last_use)), dict[int, Pixels]()
    for place, index in enumerate(indices):
        while index not in found:
            number, pixels = next(frames)
            found[number] = pixels
        yield index, found[index] if place < last_use[index] else found.pop(index)


def _wanted(video: _Video, indices: Sequence[int]) -> Iterator[tuple[int, Pixels]]:
    """The frames of ascending indices: those that can be reached through key frames, and the rest by decoding all before them."""
    reached = 0
    for index, pixels in _by_key_frames(video, indices):
        yield index, pixels
        reached += 1
    if reached < len(indices):
        yield from _in_sequence(video, indices[reached:])


def _by_key_frames(video: _Video, indices: Sequence[int]) -> Iterator[tuple[int, Pixels]]:
    """Stops before the first frame that cannot be reached so."""
    with _opened(video) as (container, stream):
        packets = _packets(video, container, stream)
        if not _seekable(container, stream, packets) or indices[-1] >= len(packets):
            return
    times = sorted(packet.time for packet in packets if packet.time is not None)
    keys = sorted(packet.time for packet in packets if packet.time is not None and packet.key)
    with _opened(video) as (container, stream):
        aspect, frames, begun = _pixel_aspect(video, stream), iter(()), None
        for index in indices:
            before = bisect_right(keys, times[index])
            if not before:
                return
            if keys[before - 1] != begun:
                begun = keys[before - 1]
                container.seek(begun, stream=stream)
                frames = _shown(container, stream)
                frame = next(frames, None)
                if frame is None or not frame.key_frame:  # the container names a key frame that is none
                    return
            while frame is not None and (frame.pts is None or frame.pts < times[index]):
                frame = next(frames, None)
            if frame is None or frame.pts != times[index]:
                return
            yield index, _rgb(video, frame, aspect)


def _in_sequence(video: _Video, indices: Sequence[int]) -> Iterator[tuple[int, Pixels]]:
    with _opened(video) as (container, stream):
        aspect, wanted, whole = _pixel_aspect(video, stream), set(indices), 0
        for frame in _shown(container, stream):
            if whole in wanted:
                yield whole, _rgb(video, frame, aspect)
                wanted.remove(whole)
            whole += 1
            if not wanted:
                return
    raise CutShort(video.name, min(wanted), whole)


@contextmanager
def _opened(video: _Video) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container at its start, and the stream that is read."""
    video.file.seek(0)
    kind = container_format(video.file.read(HEAD_BYTES))
    if not kind:
        raise InvalidInput(f"{video.name} is no video of a known kind.")
    try:
        import av
    except ImportError:
        raise NotPossibleHere(
            f"{video.name} is {video.codec or FORMATS[kind]} video: install the decoder on the server "
            '(pip install "echovlm-edge[video]").'
        ) from None
    video.file.seek(0)
    limit = {"max_pixels": str(video.max_pixels)}
    # A file cannot have others opened, nor other demuxers and decoders than these.
    allowed = {"protocol_whitelist": "none", "format_whitelist": kind, "codec_whitelist": ",".join(CODECS)}
    container_options = {**allowed, "max_streams": "16"}
    try:
        with av.open(
            video.file, "r", kind, options=limit, container_options=container_options, io_open=_refuse
        ) as container:
            stream = _checked(video, container)
            stream.codec_context.options = limit
            yield container, stream
    except (av.error.FFmpegError, ValueError, OverflowError) as error:
        raise InvalidInput(
            f"{video.name} is truncated or damaged and cannot be decoded ({type(error).__name__})."
        ) from None


def _refuse(*_: object) -> None:
    raise PermissionError


def _checked(video: _Video, container: InputContainer) -> VideoStream:
    stream = container.streams.best("video")
    if stream is None:
        raise InvalidInput(f"{video.name} is a video file without video: send one with pictures.")
    context = stream.codec_context
    if context is None or context.name not in CODECS:
        encoding = context.name.upper() if context else "of an unknown encoding"
        raise NotPossibleHere(f"{video.name} is video that this server does not decode ({encoding}).")
    _check_size(video, context.height, context.width)
    context.thread_count, context.thread_type = 1, "NONE"
    return stream


def _check_size(video: _Video, height: int, width: int) -> None:
    if height * width > video.max_pixels:
        raise InvalidInput(
            f"{video.name} has {width:,} x {height:,} pixels, more than {video.max_pixels:,} in all: send a smaller one."
        )


def _packets(video: _Video, container: InputContainer, stream: VideoStream) -> list[_Packet]:
    """The whole packets whose frames are shown, in the order of decoding."""
    found: list[_Packet] = []
    for packet in container.demux(stream):
        if packet.size and not packet.is_corrupt and not packet.is_discard:
            found.append(_Packet(packet.pts, packet.is_keyframe))
        if len(found) > MAX_FRAMES:
            raise InvalidInput(f"{video.name} has more than {MAX_FRAMES:,} frames: send a part of it.")
    return found


def _seekable(container: InputContainer, stream: VideoStream, packets: Sequence[_Packet]) -> bool:
    """Whether packets and frames correspond one to one by their times, and decoding can begin at each key frame."""
    context = stream.codec_context
    if container.format.name not in INDEXED or context.pix_fmt == "pal8":  # the palette comes with the first packet alone
        return False
    if container.format.name == "avi" and not context.codec.intra_only:  # its index takes other frames for key frames
        return False
    times = {packet.time for packet in packets}
    return None not in times and len(times) == len(packets)


def _shown(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """The whole frames from where the container is, in the order they are shown; damage ends them, unless it comes first."""
    from av.error import FFmpegError

    size = None
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except FFmpegError:
            if size is None:
                continue  # a recording that begins between key frames
            return
        for frame in frames:
            if size is None and not frame.is_corrupt:
                size = (frame.height, frame.width)
            if size is None:
                continue
            if frame.is_corrupt or (frame.height, frame.width) != size:
                return
            yield frame


def _pixel_aspect(video: _Video, stream: VideoStream) -> Fraction:
    """Width by height of a pixel."""
    aspect = stream.sample_aspect_ratio or Fraction(1)
    return aspect if video.square_pixels and 1 / WIDEST_PIXEL <= aspect <= WIDEST_PIXEL else Fraction(1)


def _notes(aspect: Fraction) -> tuple[str, ...]:
    if aspect == 1:
        return ()
    return (f"Its pixels are {aspect.numerator}:{aspect.denominator}, wide to high: it was stretched to square ones.",)


def _squared(video: _Video, frame: VideoFrame, aspect: Fraction) -> tuple[int, int]:
    """Height and width of a frame as it is stored, with square pixels: the shorter side is stretched."""
    height = round(frame.height / aspect) if aspect < 1 else frame.height
    width = round(frame.width * aspect) if aspect > 1 else frame.width
    _check_size(video, height, width)
    return height, width


def _shown_size(video: _Video, frame: VideoFrame, aspect: Fraction) -> tuple[int, int]:
    height, width = _squared(video, frame, aspect)
    return (width, height) if _turn(frame).transposed else (height, width)


def _rgb(video: _Video, frame: VideoFrame, aspect: Fraction) -> Pixels:
    height, width = _squared(video, frame, aspect)
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
    if (height, width) != pixels.shape[:2]:
        pixels = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
    turn = _turn(frame)
    upright = pixels.transpose(1, 0, 2) if turn.transposed else pixels
    return np.ascontiguousarray(upright[:: -1 if turn.flipped else 1, :: -1 if turn.mirrored else 1])


@dataclass(frozen=True)
class _Turn:
    """How a stored frame becomes upright: rows and columns change places first, then each may be reversed."""

    transposed: bool = False
    mirrored: bool = False  # columns
    flipped: bool = False  # rows


def _turn(frame: VideoFrame) -> _Turn:
    """What the display matrix says (ISO/IEC 14496-12, 8.3.2); angles other than quarter turns are left."""
    if "DISPLAYMATRIX" not in frame.side_data:
        return _Turn()
    a, b, _, c, d = struct.unpack("=5i", bytes(frame.side_data["DISPLAYMATRIX"])[:20])  # x' = ax + cy, y' = bx + dy
    if b == c == 0:
        return _Turn(False, a < 0, d < 0)
    return _Turn(True, c < 0, b < 0) if a == d == 0 else _Turn()
