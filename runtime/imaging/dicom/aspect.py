"""Resize pictures whose pixels are not square to square pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset

from echovlm_edge.runtime.formats.dicom_attributes import numbers

WIDEST = 5.0  # no device has pixels longer than this
ROUNDING = 0.01  # spacings are written with few digits
# The vertical size of a pixel, then the horizontal one. Where a spacing is stated, the ratio is not (PS3.3 C.7.6.3.1.7).
STATED = ("PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")


def square_size(dataset: Dataset, height: int, width: int, max_pixels: int) -> tuple[int, int]:
    """The size of a picture of stored pixels once they are square, by the first of `STATED` that can be meant.

    The shorter side of a pixel is made longer, or the longer one shorter where that would be over `max_pixels`.
    """
    tall = next((found for keyword in STATED if (found := _tallness(numbers(dataset, keyword)))), 1.0)
    if abs(tall - 1) < ROUNDING:
        return height, width
    longer = (round(height * tall), width) if tall > 1 else (height, round(width / tall))
    if longer[0] * longer[1] <= max_pixels:
        return longer
    return (height, max(1, round(width / tall))) if tall > 1 else (max(1, round(height * tall)), width)


def _tallness(sizes: Sequence[float]) -> float | None:
    """How much taller than wide pixels of these vertical and horizontal sizes are; None where they cannot be meant."""
    if len(sizes) != 2 or min(sizes) <= 0:
        return None
    tall = sizes[0] / sizes[1]
    return tall if 1 / WIDEST <= tall <= WIDEST else None


def resized(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize a picture to a height and width."""
    if pixels.shape[:2] == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BICUBIC))
