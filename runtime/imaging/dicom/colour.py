"""Colour samples to 8-bit RGB."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def to_rgb(values: NDArray[Any], depth: int, ycbcr: bool) -> NDArray[np.uint8]:
    """Samples [rows, columns, 3] of `depth` bits to uint8 RGB.

    YCbCr in the full range becomes RGB by the equations of PS3.3 C.7.6.3.1.2 (YBR_FULL), which are JFIF's and Pillow's.
    """
    bytes_ = to_bytes(values, depth)
    if not ycbcr:
        return bytes_
    height, width = bytes_.shape[:2]
    return np.asarray(Image.frombytes("YCbCr", (width, height), bytes_.tobytes()).convert("RGB"))


def to_bytes(values: NDArray[Any], depth: int) -> NDArray[np.uint8]:
    """Unsigned samples of `depth` bits, the highest of which becomes 255."""
    if depth == 8:
        return np.ascontiguousarray(values.astype(np.uint8, copy=False))
    if depth > 16:
        return (values >> (depth - 8)).astype(np.uint8)
    highest = (1 << depth) - 1
    levels = (np.arange(highest + 1) * 255 + highest // 2) // highest
    return levels.astype(np.uint8)[np.minimum(values, highest)]
