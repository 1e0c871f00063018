"""Count a GIF file's frames from its blocks, up to a limit; Pillow would read all of them, however many there are."""

from __future__ import annotations

from typing import BinaryIO

EXTENSION, IMAGE = b"\x21", b"\x2c"


def count_frames(file: BinaryIO, most: int) -> int:
    """Count the complete frames of a GIF file, without decoding them, up to one more than `most`."""
    file.seek(6)
    screen = file.read(7)
    if len(screen) < 7:
        return 0
    file.seek(13 + _palette_bytes(screen[4]))
    frames = 0
    while frames <= most:
        kind = file.read(1)
        if kind == EXTENSION:
            whole = len(file.read(1)) == 1 and _skip_blocks(file)
        elif kind == IMAGE:
            descriptor = file.read(9)
            file.read(
                (_palette_bytes(descriptor[8]) if len(descriptor) == 9 else 0) + 1
            )  # a colour table, and the code size
            whole = _skip_blocks(file)
            frames += whole
        elif kind == b"\0":  # some writers leave a stray one
            continue
        else:
            break
        if not whole:
            break
    return frames


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _skip_blocks(file: BinaryIO) -> bool:
    """Skip the data sub-blocks that come next; returns whether they are complete."""
    while size := file.read(1):
        if size == b"\0":
            return True
        if len(file.read(size[0])) < size[0]:
            return False
    return False
