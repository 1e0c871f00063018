"""Pixels that are not square to square ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset

from echovlm_edge.runtime.formats.dicom_attributes import numbers

WIDEST = 5.0  # no device has pixels longer than this


def square_size(dataset: Dataset, height: int, width: int, max_pixels: int) -> tuple[int, int]:
    """The size of a picture of stored pixels once they are square, by PixelAspectRatio (PS3.3 C.7.6.3.1.7).

    The shorter side of a pixel is made longer, or the longer one shorter where that would be over `max_pixels`.
    """
    ratio = numbers(dataset, "PixelAspectRatio")  # vertical size, horizontal size
    if len(ratio) != 2 or min(ratio) <= 0 or ratio[0] == ratio[1]:
        return height, width
    tall = ratio[0] / ratio[1]
    if not 1 / WIDEST <= tall <= WIDEST:
        return height, width
    longer = (round(height * tall), width) if tall > 1 else (height, round(width / tall))
    if longer[0] * longer[1] <= max_pixels:
        return longer
    return (height, max(1, round(width / tall))) if tall > 1 else (max(1, round(height * tall)), width)


def resized(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A picture at that height and width."""
    if pixels.shape[:2] == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BICUBIC))
