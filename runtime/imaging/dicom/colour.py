"""Convert colour samples to 8-bit RGB."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def to_rgb(values: NDArray[Any], depth: int, ycbcr: bool) -> NDArray[np.uint8]:
    """Convert samples [rows, columns, 3] of `depth` bits to uint8 RGB.

    YCbCr in the full range is converted by PS3.3 C.7.6.3.1.2 (YBR_FULL), whose equations for 8 bits are those of JFIF and Pillow.
    """
    if not ycbcr:
        return to_bytes(values, depth)
    if depth == 8:
        height, width = values.shape[:2]
        eight = values.astype(np.uint8, copy=False).tobytes()
        return np.asarray(Image.frombytes("YCbCr", (width, height), eight).convert("RGB"))
    highest = (1 << depth) - 1
    luma, blue, red = (values[..., channel].astype(np.float32) for channel in range(3))
    blue, red = blue - (highest + 1) // 2, red - (highest + 1) // 2
    rgb = np.stack((luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue), axis=-1)
    return np.rint(np.clip(rgb, 0, highest) * (255 / highest)).astype(np.uint8)


def to_bytes(values: NDArray[Any], depth: int) -> NDArray[np.uint8]:
    """Scale unsigned samples of `depth` bits to uint8; the highest value becomes 255."""
    if depth == 8:
        return np.ascontiguousarray(values.astype(np.uint8, copy=False))
    if depth > 16:
        return (values >> (depth - 8)).astype(np.uint8)
    highest = (1 << depth) - 1
    levels = (np.arange(highest + 1) * 255 + highest // 2) // highest
    return levels.astype(np.uint8)[np.minimum(values, highest)]
