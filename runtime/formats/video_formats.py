"""The supported video containers and codecs, by FFmpeg's names, and how to recognize a container by its first bytes."""

from __future__ import annotations

import re

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
# FFmpeg's decoders that may run, and their names; all are written in C and start no threads.
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
HEAD_BYTES = 1024  # enough for `container_format`


def container_format(head: bytes) -> str:
    """Return FFmpeg's name of a container or raw stream by its first `HEAD_BYTES`; empty for an unsupported one."""
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
