"""Read the headers of JPEG, JPEG-LS and JPEG 2000 codestreams before decoding."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

JPEG_START, JPEG_2000_START = b"\xff\xd8", b"\xff\x4f\xff\x51"
END = b"\xff\xd9"  # of all of them; in no data of theirs these bytes follow each other
RGB_IDS, YCBCR_IDS = (0x52, 0x47, 0x42), (1, 2, 3)
LOSSLESS_FRAMES = (0xC3, 0xC7, 0xCB, 0xCF)
JPEG_LS_FRAME = 0xF7
FRAMES = (0xC0, 0xC1, 0xC2, *LOSSLESS_FRAMES, 0xC5, 0xC6, 0xC9, 0xCA, 0xCD, 0xCE, JPEG_LS_FRAME)
BARE_MARKERS = (0x01, *range(0xD0, 0xD9))  # without a length
START_OF_SCAN = 0xDA


@dataclass(frozen=True)
class Codestream:
    """One frame's codestream.

    Attributes:
        kind: "JPEG" (the lossy processes), "lossless JPEG", "JPEG-LS" or "JPEG 2000".
        height, width: in pixels.
        samples: per pixel.
        precision: bits of a sample.
        signed: whether samples are signed; only JPEG 2000 can say so.
        ended: whether its end is there; decoders fill up what is missing, and say nothing.
        colour: "RGB" or "YCbCr" where the codestream itself says which its decoded samples are, else empty.
    """

    kind: str
    height: int
    width: int
    samples: int
    precision: int
    ended: bool
    signed: bool = False
    colour: str = ""


def read_codestream(data: bytes) -> Codestream:
    """Read a codestream's headers.

    Raises:
        ValueError: it is none of these kinds, or damaged.
    """
    try:
        if data.startswith(JPEG_START):
            return _jpeg(data)
        at = data.find(JPEG_2000_START, 0, 4096)  # a JP2 file's boxes may stand in front
        if at >= 0:
            return _jpeg_2000(data, at)
    except (struct.error, IndexError):
        raise ValueError("a codestream whose headers are truncated") from None
    raise ValueError("no codestream that is known")


def with_adobe_transform(data: bytes, transformed: bool) -> bytes:
    """Add an Adobe segment (ITU-T T.872, 6.5.3) in front of a JPEG's others, which states whether it is YCbCr."""
    segment = b"\xff\xee\x00\x0eAdobe" + struct.pack(">HHHB", 100, 0, 0, int(transformed))
    return JPEG_START + segment + data[2:]


def with_end(data: bytes) -> bytes:
    """Add a missing end marker to a JPEG 2000 codestream: some encoders omit it, and OpenJPEG requires it."""
    first_tile = data.find(b"\xff\x90", data.find(JPEG_2000_START))
    end = 0 if data.find(END, first_tile) > 0 else _tiles_end(data, first_tile)
    return data[:end] + END if end else data


def with_whole_spectrum(data: bytes) -> bytes:
    """Make a sequential JPEG's first scan state all coefficients (0 to 63, ITU-T T.81 B.2.3). Some encoders wrote other numbers, which
    can mean nothing else.

    Raises:
        ValueError: there is no scan.
    """
    for marker, at, length in _segments(data):
        if marker == START_OF_SCAN:
            end = at + length
            return data[: end - 3] + b"\0\x3f\0" + data[end:]
    raise ValueError("no scan")


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the marker segments up to the first scan: the marker, the position of its length, and the length."""
    at, marker = 2, 0
    while marker != START_OF_SCAN:
        if data[at] != 0xFF:
            raise ValueError("no marker where one should be")
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        at += 1
        if marker in BARE_MARKERS:
            continue
        (length,) = struct.unpack_from(">H", data, at)
        yield marker, at, length
        at += max(length, 2)


def _jpeg(data: bytes) -> Codestream:
    jfif, adobe = False, None
    for marker, at, length in _segments(data):
        body = data[at + 2 : at + length]
        if marker == 0xE0 and body.startswith(b"JFIF\0"):
            jfif = True
        elif marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12:
            adobe = body[11]
        elif marker in FRAMES:
            return _frame(marker, body, jfif, adobe, data.find(END, at + length) > 0)
    raise ValueError("a scan without a frame")


def _frame(marker: int, body: bytes, jfif: bool, adobe: int | None, ended: bool) -> Codestream:
    precision, height, width, samples = struct.unpack_from(">BHHB", body)
    components = [body[6 + 3 * number : 9 + 3 * number] for number in range(samples)]
    ids = tuple(component[0] for component in components)
    subsampled = len({component[1] for component in components}) > 1
    if marker == JPEG_LS_FRAME:
        return Codestream("JPEG-LS", height, width, samples, precision, ended)
    if marker in LOSSLESS_FRAMES:
        return Codestream("lossless JPEG", height, width, samples, precision, ended)
    colour = _jpeg_colour(ids, jfif, adobe, subsampled) if samples == 3 else ""
    return Codestream("JPEG", height, width, samples, precision, ended, colour=colour)


def _jpeg_colour(ids: tuple[int, ...], jfif: bool, adobe: int | None, subsampled: bool) -> str:
    """Determine the colour space of three components by libjpeg's rules, which every viewer built on it follows.

    A JFIF file is YCbCr (ITU-T T.871, 6); Adobe's segment says (T.872, 6.5.3); else the components' ids do: 'R', 'G', 'B'
    or JFIF's 1, 2, 3. Only a chroma has fewer samples than another component.
    """
    if jfif:
        return "YCbCr"
    if adobe is not None:
        return "YCbCr" if adobe else "RGB"
    if ids == RGB_IDS:
        return "RGB"
    return "YCbCr" if ids == YCBCR_IDS or subsampled else ""


def _jpeg_2000(data: bytes, at: int) -> Codestream:
    """Read the headers of a JPEG 2000 codestream (ITU-T T.800, A.5.1 SIZ and A.6.1 COD)."""
    right, bottom, left, top = struct.unpack_from(">4L", data, at + 8)
    (samples,) = struct.unpack_from(">H", data, at + 40)
    depth = data[at + 42]
    (length,) = struct.unpack_from(">H", data, at + 4)
    colour, at = "", at + 4 + length
    while data[at] == 0xFF and data[at + 1] not in (0x90, 0xD9):  # up to the first tile
        (length,) = struct.unpack_from(">H", data, at + 2)
        if data[at + 1] == 0x52 and samples == 3 and data[at + 8]:
            colour = "RGB"  # decoders undo the multiple component transform
        at += 2 + max(length, 2)
    ended, signed = data.find(END, at) > 0 or _tiles_end(data, at) > 0, bool(depth & 0x80)
    return Codestream("JPEG 2000", bottom - top, right - left, samples, (depth & 0x7F) + 1, ended, signed, colour)


def _tiles_end(data: bytes, at: int) -> int:
    """Return where the tile-parts end by their lengths (A.4.2, SOT), if the data ends there too; else 0."""
    while data[at : at + 2] == b"\xff\x90":
        (length,) = struct.unpack_from(">L", data, at + 6)
        if not length or at + length > len(data):
            return 0
        at += length
    return at if at >= len(data) - 1 else 0  # but for a byte that makes it even
