"""The chunks of a PNG file: those that its picture is made of, without all others; and its header alone."""

from __future__ import annotations

import io
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# What the picture needs: the critical chunks, transparency, orientation and animation. Others (colour, resolution, texts of any length)
# change nothing that is shown here, and a damaged one would have the whole file refused.
SHOWN = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"IDAT", b"IEND")
PIXELS, ORIENTATION = b"IDAT", b"eXIf"


def shown(file: BinaryIO) -> BinaryIO:
    """Copy what a PNG file's picture is made of; any other file is given back as it is."""
    found = _chunks(file)
    return io.BytesIO(b"".join((SIGNATURE, *(_read(file, *place) for _, *place in found)))) if found else file


def header(file: BinaryIO) -> BinaryIO:
    """Copy a PNG file up to its pixels, with the orientation behind them moved up; any other file is given back as it is."""
    found = _chunks(file)
    first = next((number for number, (kind, *_) in enumerate(found) if kind == PIXELS), None)
    if first is None:
        return file
    later = [chunk for chunk in found[first:] if chunk[0] == ORIENTATION]
    said = [_read(file, *place) for _, *place in (*found[:first], *later)]
    announced = _read(file, found[first][1], 8)  # the first chunk of pixels ends what is read of the header
    return io.BytesIO(b"".join((SIGNATURE, *said, announced)))


def _chunks(file: BinaryIO) -> list[tuple[bytes, int, int]]:
    """The chunks of `SHOWN`, by kind, place and length with all that belongs to them; the last may be cut off."""
    size = file.seek(0, io.SEEK_END) or file.tell()  # a map's seek answers nothing
    file.seek(0)
    if file.read(len(SIGNATURE)) != SIGNATURE:
        return []
    at, found = len(SIGNATURE), list[tuple[bytes, int, int]]()
    while at + 8 <= size:
        head = _read(file, at, 8)
        length = 12 + int.from_bytes(head[:4], "big")
        if head[4:] in SHOWN or head[4:5].isupper() or not head[4:].isalpha():
            found.append((head[4:], at, length))
        at += length
    return found


def _read(file: BinaryIO, at: int, length: int) -> bytes:
    file.seek(at)
    return file.read(length)
