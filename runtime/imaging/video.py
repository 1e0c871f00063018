"""Decode video to RGB frames with FFmpeg (PyAV): MP4, QuickTime, AVI, Matroska, MPEG streams, raw H.264 and HEVC.

Frames are numbered in display order, from 0. YCbCr is converted to RGB as the ffmpeg program does it: by the matrix and range that
the stream states, else by BT.601 and the limited range. Interlaced frames keep both of their fields. Frames are rotated as the file
says, and pixels that are not square are made square. The decoder runs in the calling thread.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, BinaryIO, cast

from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.formats.video_formats import CODECS, FORMATS, HEAD_BYTES, container_format
from echovlm_edge.runtime.imaging.video_frames import (
    Pixels,
    aspect_notes,
    pixel_aspect,
    shown_size,
    squared_size,
    to_rgb,
)

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

INDEXED = ("mov", "matroska", "avi")  # containers that state every frame's time
MAX_PIXELS = 64_000_000  # of one frame
DECODER_SLACK = 4  # decoders refuse, without saying the size, a frame of more than this many times the allowed pixels
MAX_FRAMES = 100_000  # of a file: hours of cine; an index of more is not read
# FFmpeg's HEVC decoder fills up a picture whose end is missing, and says nothing. These containers do not say where their last one ends.
HEVC, WITHOUT_END = "hevc", ("hevc", "mpegts")
LAST = "last packet"  # goes with its frame through the decoder
COPY_OPAQUE = 1 << 7  # AV_CODEC_FLAG_COPY_OPAQUE of libavcodec/avcodec.h: what goes with a packet comes with its frame
# Units that only follow a whole picture (ITU-T H.265, table 7-1): end of sequence, end of bitstream.
END_OF_SEQUENCE, END_OF_BITSTREAM = b"\0\0\1\x48\1", b"\0\0\1\x4a\1"
LEFT_OUT = "The last frame of an HEVC stream is left out: the stream does not say whether all of it is there."


@dataclass(frozen=True)
class VideoHeader:
    """A video's codec name, number of complete frames, their size as shown in pixels, and notes about them."""

    codec: str
    count: int
    height: int
    width: int
    notes: tuple[str, ...] = ()


class CutShort(InvalidInput):
    """A requested frame is damaged, or comes after damage.

    Attributes:
        whole: how many frames from the start are complete.
    """

    def __init__(self, name: str, index: int, whole: int) -> None:
        """Say which frame cannot be decoded, and how many can."""
        super().__init__(
            f"{name} is truncated or damaged: frame {index} cannot be decoded, its first {whole} are whole."
        )
        self.whole = whole


@dataclass(frozen=True)
class _Packet:
    """An encoded frame: its display time in the stream's time base, and whether decoding can begin with it."""

    time: int | None
    key: bool


@dataclass(frozen=True)
class _Video:
    """A video file, its name, and how to read it."""

    file: BinaryIO = field(repr=False)
    name: str
    max_pixels: int
    codec: str
    square_pixels: bool
    stated: int


def measure(
    file: BinaryIO,
    name: str,
    max_pixels: int = MAX_PIXELS,
    codec: str = "",
    square_pixels: bool = True,
    stated: int = 0,
) -> VideoHeader:
    """Count a video's complete frames and find their size: from its packets where they show it, else by decoding.

    Args:
        file: to read from; it is left anywhere.
        name: what sentences call it.
        max_pixels: of a frame.
        codec: what the video is called where no decoder is installed: "H.264".
        square_pixels: make pixels square that are not; without it frames have the size that is stored.
        stated: frames that there are by whoever wrote the video, where that is known.

    Raises:
        InvalidInput: the file is no supported video, has larger frames, or has no complete frame.
        NotPossibleHere: there is no decoder for the video.
    """
    video = _Video(file, name, max_pixels, codec, square_pixels, stated)
    with _opened(video) as (container, stream):
        packets = _packets(video, container, stream)
        count = len(packets) if _seekable(container, stream, packets) else 0
    with _opened(video) as (container, stream):
        frames = _shown(container, stream, video)
        first = next(frames, None)
        if first is None:
            raise InvalidInput(f"{name} is truncated or damaged: none of its frames can be decoded.")
        aspect = _aspect(video, stream)
        _check_size(video, *squared_size(first, aspect))
        height, width = shown_size(first, aspect)
        count = count or 1 + sum(1 for _ in frames)
        left_out = (LEFT_OUT,) if not stated and _hides_its_end(container, stream, video) else ()
        notes = (*aspect_notes(aspect), *left_out)
        return VideoHeader(CODECS[stream.codec_context.name], count, height, width, notes)


def decode(
    file: BinaryIO,
    name: str,
    indices: Sequence[int],
    max_pixels: int = MAX_PIXELS,
    codec: str = "",
    square_pixels: bool = True,
    stated: int = 0,
) -> Iterator[tuple[int, Pixels]]:
    """Decode frames of a video: each index with its RGB uint8 [height, width, 3], in the order of `indices`.

    Where the container's times are reliable, decoding starts at the key frame before a requested frame.

    Raises:
        CutShort: a requested frame is damaged, or comes after damage.
        InvalidInput, NotPossibleHere: as `measure`.
    """
    video = _Video(file, name, max_pixels, codec, square_pixels, stated)
    last_use = {index: place for place, index in enumerate(indices)}
    frames, found = _wanted(video, sorted(last_use)), dict[int, Pixels]()
    for place, index in enumerate(indices):
        while index not in found:
            number, pixels = next(frames)
            found[number] = pixels
        yield index, found[index] if place < last_use[index] else found.pop(index)


def _wanted(video: _Video, indices: Sequence[int]) -> Iterator[tuple[int, Pixels]]:
    """Yield the frames of ascending indices: by seeking to key frames where possible, else by decoding all frames before."""
    reached = 0
    for index, pixels in _by_key_frames(video, indices):
        yield index, pixels
        reached += 1
    if reached < len(indices):
        yield from _in_sequence(video, indices[reached:])


def _by_key_frames(video: _Video, indices: Sequence[int]) -> Iterator[tuple[int, Pixels]]:
    """Yield frames by seeking to key frames; stops before the first frame that cannot be reached like this."""
    with _opened(video) as (container, stream):
        packets = _packets(video, container, stream)
        if not _seekable(container, stream, packets) or indices[-1] >= len(packets):
            return
    times = sorted(packet.time for packet in packets if packet.time is not None)
    keys = sorted(packet.time for packet in packets if packet.time is not None and packet.key)
    with _opened(video) as (container, stream):
        frames: Iterator[VideoFrame] = iter(())
        frame: VideoFrame | None = None
        aspect, begun = _aspect(video, stream), None
        for index in indices:
            before = bisect_right(keys, times[index])
            if not before:
                return
            if keys[before - 1] != begun:
                begun = keys[before - 1]
                frames = _shown_from(begun, container, stream, video)
                frame = next(frames, None)
                if frame is None or not frame.key_frame:  # the container marks a frame as a key frame that is none
                    return
            while frame is not None and (frame.pts is None or frame.pts < times[index]):
                frame = next(frames, None)
            if frame is None or frame.pts != times[index]:
                return
            yield index, _to_rgb(video, frame, aspect)


def _shown_from(time: int, container: InputContainer, stream: VideoStream, video: _Video) -> Iterator[VideoFrame]:
    from av.error import FFmpegError

    try:
        container.seek(time, stream=stream)
    except FFmpegError:  # seeking does not work in this file
        return
    yield from _shown(container, stream, video)


def _in_sequence(video: _Video, indices: Sequence[int]) -> Iterator[tuple[int, Pixels]]:
    with _opened(video) as (container, stream):
        aspect, wanted, whole = _aspect(video, stream), set(indices), 0
        for frame in _shown(container, stream, video):
            if whole in wanted:
                yield whole, _to_rgb(video, frame, aspect)
                wanted.remove(whole)
            whole += 1
            if not wanted:
                return
    raise CutShort(video.name, min(wanted), whole)


@contextmanager
def _opened(video: _Video) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the container at its start, and choose the video stream."""
    video.file.seek(0)
    kind = container_format(video.file.read(HEAD_BYTES))
    if not kind:
        raise InvalidInput(f"{video.name} is no video of a known kind.")
    try:
        import av
    except ImportError:
        raise NotPossibleHere(
            f"{video.name} is {video.codec or FORMATS[kind]} video: install the decoder on the server (pip install av)."
        ) from None
    video.file.seek(0)
    limit = {"max_pixels": str(DECODER_SLACK * video.max_pixels)}
    # A file must not open other files or URLs, nor use other demuxers and decoders than these.
    allowed = {"protocol_whitelist": "none", "format_whitelist": kind, "codec_whitelist": ",".join(CODECS)}
    container_options = {**allowed, "max_streams": "16"}
    try:
        with av.open(
            video.file, "r", kind, options=limit, container_options=container_options, io_open=_refuse
        ) as container:
            stream = _checked(video, container)
            stream.codec_context.options = limit
            yield container, stream
    except MemoryError:
        raise MemoryError from None  # not PyAV's own, which is an FFmpegError as well
    except (av.error.FFmpegError, ValueError, OverflowError) as error:
        raise InvalidInput(
            f"{video.name} is truncated or damaged and cannot be decoded ({type(error).__name__})."
        ) from None


def _refuse(*_: object) -> None:
    raise PermissionError


def _checked(video: _Video, container: InputContainer) -> VideoStream:
    stream = container.streams.best("video")
    if stream is None:
        raise InvalidInput(f"{video.name} is damaged, or a video file without video: send one with pictures.")
    context = cast("VideoStream", stream).codec_context
    if context is None:
        raise InvalidInput(f"{video.name} is damaged, or video of an unknown encoding: send it as H.264.")
    if context.name not in CODECS:
        raise NotPossibleHere(f"{video.name} is video that this server does not decode ({context.name.upper()}).")
    _check_size(video, context.height, context.width)
    context.thread_count, context.thread_type = 1, "NONE"
    context.flags |= COPY_OPAQUE
    return cast("VideoStream", stream)


def _check_size(video: _Video, height: int, width: int) -> None:
    if height * width > video.max_pixels:
        raise InvalidInput(
            f"{video.name} has {width:,} x {height:,} pixels, more than {video.max_pixels:,} in all: send a smaller one."
        )


def _packets(video: _Video, container: InputContainer, stream: VideoStream) -> list[_Packet]:
    """List the complete packets whose frames are shown, in decoding order."""
    found: list[_Packet] = []
    for packet in container.demux(stream):
        if packet.size and not packet.is_corrupt and not packet.is_discard:
            found.append(_Packet(packet.pts, packet.is_keyframe))
        if len(found) > MAX_FRAMES:
            raise InvalidInput(f"{video.name} has more than {MAX_FRAMES:,} frames: send a part of it.")
    return found


def _seekable(container: InputContainer, stream: VideoStream, packets: Sequence[_Packet]) -> bool:
    """Check whether packets and frames correspond one to one by their times, and decoding can begin at each key frame."""
    context = stream.codec_context
    if container.format.name not in INDEXED or context.pix_fmt == "pal8":  # only the first packet has the palette
        return False
    if container.format.name == "avi" and not context.codec.intra_only:  # AVI's index marks other frames as key frames
        return False
    times = {packet.time for packet in packets}
    return None not in times and len(times) == len(packets)


def _shown(container: InputContainer, stream: VideoStream, video: _Video) -> Iterator[VideoFrame]:
    """The whole frames from where the container is, in the order they are shown, as far as it is sure that they are whole."""
    frames = _undamaged(container, stream)
    for given, frame in enumerate(frames):
        if frame.opaque == LAST and _hides_its_end(container, stream, video):
            rest = [frame, *frames]
            if given + len(rest) == video.stated:
                yield from rest
            return
        yield frame


def _hides_its_end(container: InputContainer, stream: VideoStream, video: _Video) -> bool:
    """Whether nothing says that all of the last packet is there."""
    if stream.codec_context.name != HEVC or container.format.name not in WITHOUT_END:
        return False
    place = video.file.tell()
    video.file.seek(-len(END_OF_SEQUENCE), io.SEEK_END)
    last = video.file.read()
    video.file.seek(place)
    return last not in (END_OF_SEQUENCE, END_OF_BITSTREAM)


def _undamaged(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """The frames from where the container is, in the order they are shown; damage ends them, unless it comes first."""
    size = None
    for frames, damaged in _decoded(container, stream):
        for frame in frames:
            if size is None and not frame.is_corrupt:
                size = (frame.height, frame.width)
            if size is None:
                continue
            if frame.is_corrupt or (frame.height, frame.width) != size:
                return
            yield frame
        if damaged and size is not None:  # damage before the first frame: the recording begins between key frames
            yield from (frame for frame in _flushed(stream) if (frame.height, frame.width) == size)
            return


def _decoded(container: InputContainer, stream: VideoStream) -> Iterator[tuple[list[VideoFrame], bool]]:
    """Yield, for each packet, the frames that the decoder returns, and whether the packet is damaged."""
    from av.error import FFmpegError

    for packet, is_last in _with_last(container.demux(stream)):
        packet.opaque = LAST if is_last else None
        if packet.is_corrupt:  # it was cut off
            yield [], True
            continue
        try:
            yield packet.decode(), False
        except MemoryError:
            raise
        except FFmpegError:
            yield [], True


def _with_last(packets: Iterator[Packet[VideoStream]]) -> Iterator[tuple[Packet[VideoStream], bool]]:
    """Yield each packet, and whether it is the last one with data: the one behind it is empty, and flushes the decoder."""
    before: Packet[VideoStream] | None = None
    for packet in packets:
        if before is not None:
            yield before, not packet.size
        before = packet
    if before is not None:
        yield before, False


def _flushed(stream: VideoStream) -> Iterator[VideoFrame]:
    """Yield the frames that the decoder still holds back for reordering."""
    from av.error import FFmpegError

    with suppress(FFmpegError):
        for frame in stream.codec_context.decode(None):
            if frame.is_corrupt:
                return
            yield frame


def _aspect(video: _Video, stream: VideoStream) -> Fraction:
    return pixel_aspect(stream) if video.square_pixels else Fraction(1)


def _to_rgb(video: _Video, frame: VideoFrame, aspect: Fraction) -> Pixels:
    _check_size(video, *squared_size(frame, aspect))
    return to_rgb(frame, aspect)
