"""Make tiny videos with PyAV's encoders, and decode videos with FFmpeg's program to compare."""

from __future__ import annotations

import shutil
import subprocess
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import pytest
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
# Media type, codec, pixel format and the container (FFmpeg's names) of each kind that is read; lossless ones are of RGB or grey.
KINDS: dict[str, tuple[str, str, str, str, dict[str, str]]] = {
    "mp4 h264": ("video/mp4", "libx264", "yuv420p", "mp4", {"g": "6", "bf": "2"}),
    "mp4 hevc": ("video/mp4", "libx265", "yuv420p", "mp4", {"x265-params": "log-level=none:keyint=6"}),
    "mp4 hevc 10 bits grey": ("video/mp4", "libx265", "yuv420p10le", "mp4", {"x265-params": "log-level=none:keyint=6"}),
    "mp4 mpeg4": ("video/mp4", "mpeg4", "yuv420p", "mp4", {"g": "6"}),
    "quicktime mjpeg": ("video/quicktime", "mjpeg", "yuvj420p", "mov", {}),
    "avi mjpeg": ("video/x-msvideo", "mjpeg", "yuvj420p", "avi", {}),
    "avi mpeg4": ("video/x-msvideo", "mpeg4", "yuv420p", "avi", {"bf": "2"}),
    "avi h264": ("video/x-msvideo", "libx264", "yuv420p", "avi", {"g": "6", "bf": "2"}),
    "avi raw": ("video/x-msvideo", "rawvideo", "bgr24", "avi", {}),
    "avi ffv1": ("video/x-msvideo", "ffv1", "bgr0", "avi", {}),
    "avi ffv1 grey": ("video/x-msvideo", "ffv1", "gray", "avi", {}),
    "matroska h264": ("video/x-matroska", "libx264", "yuv420p", "matroska", {"g": "6", "bf": "2"}),
    "webm vp8": ("video/webm", "libvpx", "yuv420p", "webm", {}),
    "mpeg program": ("video/mpeg", "mpeg2video", "yuv420p", "vob", {"g": "6", "bf": "2"}),
    "mpeg transport": ("video/mp2t", "mpeg2video", "yuv420p", "mpegts", {"g": "6"}),
    "transport h264": ("video/mp2t", "libx264", "yuv420p", "mpegts", {"g": "6", "bf": "2"}),
    "mpeg stream": ("video/mpeg", "mpeg2video", "yuv420p", "mpeg2video", {"g": "6", "bf": "2"}),
    "mpeg4 stream": ("video/mp4v-es", "mpeg4", "yuv420p", "m4v", {"g": "6"}),
    "h264 stream": ("video/h264", "libx264", "yuv420p", "h264", {"g": "6", "bf": "2"}),
    "hevc stream": ("video/h265", "libx265", "yuv420p", "hevc", {"x265-params": "log-level=none:keyint=6"}),
}
LOSSLESS = ("avi raw", "avi ffv1", "avi ffv1 grey")


def moving(count: int, height: int = 48, width: int = 64, grey: bool = False) -> list[Pixels]:
    """Make frames of a bright square that moves over a gradient, all of them different."""
    frames = []
    for number in range(count):
        frame = np.zeros((height, width, 3), np.uint8)
        frame[..., 0] = np.linspace(20, 200, width)
        frame[..., 1] = np.linspace(200, 20, height)[:, None]
        frame[..., 2] = 60
        left = 2 * (number * 3 % (width // 2 - 8))
        frame[10:26, left : left + 16] = (230, 230 - number, 40)
        frames.append(np.repeat(frame[..., :1], 3, axis=2) if grey else frame)
    return frames


def encoded(
    kind: str,
    frames: list[Pixels],
    aspect: Fraction | None = None,
    container: dict[str, str] | None = None,
    **options: str,
) -> bytes:
    """Encode a video of one of `KINDS`."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "video"  # which some options have opened twice
        _encode(file, kind, frames, aspect, container or {}, options)
        return file.read_bytes()


def _encode(
    file: Path,
    kind: str,
    frames: list[Pixels],
    aspect: Fraction | None,
    container: dict[str, str],
    options: dict[str, str],
) -> None:
    _, codec, pixel_format, container_format, fixed = KINDS[kind]
    with av.open(str(file), "w", format=container_format, options=container) as output:
        stream = output.add_stream(codec, rate=25, options={**fixed, **options})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        if pixel_format.startswith("yuvj"):
            stream.codec_context.color_range = 2
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode(None))


def by_ffmpeg(data: bytes, folder: Path, height: int, width: int, *filters: str) -> Pixels:
    """Decode all frames [frames, height, width, 3] of a video with FFmpeg's program; skips the test if that is not installed."""
    if not shutil.which("ffmpeg"):
        pytest.skip("FFmpeg's program is not installed (Debian: apt-get install ffmpeg)")
    file = folder / "video"
    file.write_bytes(data)
    command = ["ffmpeg", "-v", "error", "-i", str(file), *filters, "-vsync", "passthrough"]
    raw = subprocess.run(
        [*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True, timeout=60
    ).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)
