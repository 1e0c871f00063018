"""Make what a workload's requests hold: a new ultrasound frame each time, and a prompt of a given number of tokens."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image

from echovlm_edge.runtime.contracts.request import ImageInput
from echovlm_edge.runtime.imaging.image_file import decode_image
from echovlm_edge.runtime.imaging.sample import sample_image

FILLER = "What do you see in the images and what does it suggest ?"  # repeated, its words make a prompt of any length


def frame(number: int, width: int, height: int) -> ImageInput:
    """Encode a real ultrasound frame at that size as a PNG file, another picture for each number, so that no cache has it."""
    pixels = np.roll(_resized(width, height), 16 * number, axis=1)
    pixels[0, :3, 0] = np.frombuffer((number % (1 << 24)).to_bytes(3, "little"), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return ImageInput(file.getvalue(), "image/png", f"frame {number}")


@cache
def _resized(width: int, height: int) -> np.ndarray:
    (sample,) = decode_image(sample_image())
    return np.asarray(Image.fromarray(sample.pixels).resize((width, height), Image.Resampling.BICUBIC))


def text_of(tokens: int, count: Callable[[str], int]) -> str:
    """Write a prompt for which `count(prompt)`, its tokens of text, is as near to `tokens` as whole words allow."""
    words = FILLER.split()

    def first(number: int) -> str:
        return " ".join(words[index % len(words)] for index in range(number))

    low, high = 1, max(2, tokens)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(first(middle)) <= tokens else (low, middle - 1)
    return first(low)
