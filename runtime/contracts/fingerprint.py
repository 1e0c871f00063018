"""Fingerprint a picture so that pictures that look alike can be found by comparing a few bytes: a difference hash."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a client has no numpy
    import numpy as np
    from numpy.typing import NDArray

CELLS = 16  # rows, and steps from one column to the next: 256 bits
STEP = 2.0  # gray levels; a smaller step counts as none, so that the noise of a compressed black border says nothing


def fingerprint_of(pixels: NDArray[np.uint8]) -> bytes:
    """Return 32 bytes of a picture, uint8 [height, width, 3]: a bit is set where a cell's mean is brighter than its right neighbour's.

    The cells are a grid of 16 rows and 17 columns of gray means. A picture narrower or lower than the grid has none.
    """
    import numpy as np

    height, width = pixels.shape[:2]
    if height < CELLS or width < CELLS + 1:
        return b""
    gray = pixels.astype(np.float32).mean(axis=2)
    rows = np.arange(CELLS) * height // CELLS
    columns = np.arange(CELLS + 1) * width // (CELLS + 1)
    sums = np.add.reduceat(np.add.reduceat(gray, rows, axis=0), columns, axis=1)
    areas = np.outer(np.diff(np.append(rows, height)), np.diff(np.append(columns, width)))
    means = sums / areas
    return np.packbits(means[:, :-1] - means[:, 1:] > STEP).tobytes()


def distance(one: bytes, other: bytes) -> int:
    """Return in how many bits two fingerprints differ."""
    return (int.from_bytes(one) ^ int.from_bytes(other)).bit_count()
