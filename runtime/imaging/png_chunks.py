"""The chunks of a PNG file, moved so that all that is said about the picture comes before its pixels."""

from __future__ import annotations

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")  # where the orientation can stand; PNG lets them follow the pixels


def texts_first(data: bytes) -> bytes:
    """The file with these chunks moved up from behind its pixels; any other file, and any damage, as it is."""
    if not data.startswith(SIGNATURE):
        return data
    at, pixels, later = len(SIGNATURE), 0, list[bytes]()
    while at + 12 <= len(data):
        kind = data[at + 4 : at + 8]
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if kind == b"IDAT":
            pixels = pixels or at
        elif pixels and kind in TEXTS and end <= len(data):
            later.append(data[at:end])
        at = end
    return b"".join((data[:pixels], *later, data[pixels:])) if later else data
