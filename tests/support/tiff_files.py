"""Write TIFF files of every layout by hand, because Pillow's writer supports few of them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

SHORT, LONG = 3, 4
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
UNSIGNED, SIGNED, FLOAT = 1, 2, 3


@dataclass(frozen=True)
class Page:
    """One picture of a file: samples [height, width] or [height, width, samples], as they are stored.

    Attributes:
        planar: all of one colour together.
        tile: height and width of tiles; none: one strip of all rows.
        tags: more of them, each of LONG values.
    """

    samples: NDArray[np.generic]
    photometric: int = BLACK_IS_ZERO
    planar: bool = False
    tile: tuple[int, int] = ()  # type: ignore[assignment]
    tags: dict[int, Sequence[int]] = field(default_factory=dict)


def tiff(*pages: Page, order: str = "<") -> bytes:
    """Make a file of uncompressed pages; `order` is struct's byte-order character."""
    file = bytearray(struct.pack(f"{order}2sHL", b"II" if order == "<" else b"MM", 42, 0))
    link = 4
    for page in pages:
        blocks = [block.astype(block.dtype.newbyteorder(order)).tobytes() for block in _blocks(page)]
        starts = []
        for block in blocks:
            starts.append(len(file))
            file += block + bytes(len(block) % 2)
        tags = _tags(page, starts, [len(block) for block in blocks])
        struct.pack_into(f"{order}L", file, link, len(file))
        link = _write_directory(file, order, tags)
    return bytes(file)


def _blocks(page: Page) -> list[NDArray[np.generic]]:
    planes = [page.samples[..., plane] for plane in range(page.samples.shape[2])] if page.planar else [page.samples]
    if not page.tile:
        return planes
    rows, columns = page.tile
    blocks = []
    for plane in planes:
        more = ((0, -plane.shape[0] % rows), (0, -plane.shape[1] % columns)) + ((0, 0),) * (plane.ndim - 2)
        padded = np.pad(plane, more)
        for top in range(0, padded.shape[0], rows):
            blocks += [padded[top : top + rows, left : left + columns] for left in range(0, padded.shape[1], columns)]
    return blocks


def _tags(page: Page, starts: list[int], lengths: list[int]) -> dict[int, tuple[int, Sequence[int]]]:
    height, width = page.samples.shape[:2]
    count = page.samples.shape[2] if page.samples.ndim == 3 else 1
    sample_format = {"u": UNSIGNED, "i": SIGNED, "f": FLOAT}[page.samples.dtype.kind]
    tags: dict[int, tuple[int, Sequence[int]]] = {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [8 * page.samples.dtype.itemsize] * count),
        259: (SHORT, [1]),
        262: (SHORT, [page.photometric]),
        277: (SHORT, [count]),
        284: (SHORT, [2 if page.planar else 1]),
        339: (SHORT, [sample_format] * count),
    }
    if page.tile:
        tags |= {322: (LONG, [page.tile[1]]), 323: (LONG, [page.tile[0]]), 324: (LONG, starts), 325: (LONG, lengths)}
    else:
        tags |= {273: (LONG, starts), 278: (LONG, [height]), 279: (LONG, lengths)}
    return tags | {tag: (LONG if tag != 320 else SHORT, values) for tag, values in page.tags.items()}


def _write_directory(file: bytearray, order: str, tags: dict[int, tuple[int, Sequence[int]]]) -> int:
    """Write a directory; returns the offset at which the next directory's offset is to be stored."""
    at = len(file)
    file += bytes(2 + 12 * len(tags) + 4)
    struct.pack_into(f"{order}H", file, at, len(tags))
    for number, (tag, (kind, values)) in enumerate(sorted(tags.items())):
        packed = struct.pack(f"{order}{len(values)}{'H' if kind == SHORT else 'L'}", *values)
        entry = at + 2 + 12 * number
        struct.pack_into(f"{order}HHL", file, entry, tag, kind, len(values))
        if len(packed) <= 4:
            file[entry + 8 : entry + 8 + len(packed)] = packed
        else:
            struct.pack_into(f"{order}L", file, entry + 8, len(file))
            file += packed
    return at + 2 + 12 * len(tags)
