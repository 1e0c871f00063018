"""Find pictures that hardly are ultrasound: blank ones, documents and colour photographs.

The tests are cautious: what an ultrasound machine can show passes, dark, inverted, tinted, with Doppler or elastography in colour and
with any writing; so does a grey photograph, which they cannot tell from it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SAMPLES = 160  # rows and columns that are looked at, at most
BLANK_LEVELS, BLANK_SHARE = 4, 0.999  # almost every pixel is this close to one grey
PAPER, INK = 232, 120  # grey levels: paper is at least, ink at most
PAPER_SHARE, BETWEEN_SHARE, LINES = 0.72, 0.16, 6  # of a page: paper, neither paper nor ink, and lines of writing
NEUTRAL, COLOURED = 4, 24  # differences between a pixel's largest and smallest channel
NEUTRAL_SHARE, COLOURED_SHARE = 0.12, 0.5  # at most and at least, of a photograph
TINT_SPREAD = 10.0  # how far colours of one brightness spread about their mean, at most, where a grey picture is tinted


def is_unlike_ultrasound(pixels: NDArray[np.uint8]) -> bool:
    """Check whether a picture, RGB uint8 [height, width, 3], hardly can be ultrasound."""
    steps = (max(1, side // SAMPLES) for side in pixels.shape[:2])
    few = pixels[tuple(slice(None, None, step) for step in steps)].astype(np.int16)  # [h, w, 3]
    grey = few.sum(axis=2) // 3  # [h, w]
    return _is_blank(few) or _is_document(grey) or _is_photograph(few, grey)


def _is_blank(few: NDArray[np.int16]) -> bool:
    near = np.abs(few - np.median(few, axis=(0, 1))).max(axis=2) <= BLANK_LEVELS
    return bool(near.mean() >= BLANK_SHARE)


def _is_document(grey: NDArray[np.int16]) -> bool:
    """Look for paper with lines of writing. An inverted ultrasound picture is one broad band of greys between black and white."""
    paper, ink = grey >= PAPER, grey <= INK
    if paper.mean() < PAPER_SHARE or (~paper & ~ink).mean() > BETWEEN_SHARE:
        return False
    written = (~paper).mean(axis=1) > 0.01  # [h]
    return int(np.count_nonzero(written[1:] & ~written[:-1])) >= LINES


def _is_photograph(few: NDArray[np.int16], grey: NDArray[np.int16]) -> bool:
    """Look for colour nearly everywhere that is no tint. Doppler and elastography colour a part of a grey picture."""
    chroma = few.max(axis=2) - few.min(axis=2)
    if (chroma <= NEUTRAL).mean() > NEUTRAL_SHARE or (chroma >= COLOURED).mean() < COLOURED_SHARE:
        return False
    return _spread_within_brightness(few, grey) > TINT_SPREAD


def _spread_within_brightness(few: NDArray[np.int16], grey: NDArray[np.int16]) -> float:
    """Return how far colours spread about the mean colour of their brightness, in grey levels; a tinted picture's hardly do."""
    levels = grey.ravel() // 8
    counts = np.maximum(np.bincount(levels, minlength=32), 1)
    squares = 0.0
    for difference in (few[..., 0] - few[..., 1], few[..., 2] - few[..., 1]):
        values = difference.ravel().astype(np.float64)
        mean = np.bincount(levels, values, minlength=32) / counts
        squares += float(np.mean((values - mean[levels]) ** 2))
    return float(np.sqrt(squares / 2))
