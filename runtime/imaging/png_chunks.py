"""The chunks of a PNG file: all that it says about its picture, without the pixels."""

from __future__ import annotations

import io
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")  # where the orientation can stand; PNG lets them follow the pixels


def header(file: BinaryIO) -> BinaryIO:
    """A file that ends where the pixels of `file` begin, with the texts behind them moved up; any other file, and any damage, as it is."""
    size = file.seek(0, io.SEEK_END) or file.tell()  # a map's seek answers nothing
    file.seek(0)
    if file.read(len(SIGNATURE)) != SIGNATURE:
        return file
    at, pixels, later = len(SIGNATURE), 0, list[bytes]()
    while at + 12 <= size:
        file.seek(at)
        head = file.read(8)
        end = at + 12 + int.from_bytes(head[:4], "big")
        if head[4:] == b"IDAT":
            pixels = pixels or at
        elif pixels and head[4:] in TEXTS and end <= size:
            file.seek(at)
            later.append(file.read(end - at))
        at = end
    if not later:
        return file
    file.seek(0)
    before = file.read(pixels)
    return io.BytesIO(b"".join((before, *later, file.read(8))))  # the first chunk of pixels is announced
