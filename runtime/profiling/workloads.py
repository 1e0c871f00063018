"""What is measured: the three workloads that every figure of the product is given for, and a grid of others."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from PIL import Image

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.contracts.request import ImageInput
from echovlm_edge.runtime.imaging.image_file import decode_image
from echovlm_edge.runtime.imaging.sample import sample_image

FILLER = (
    "What do you see in the images and what does it suggest ?"  # its words, over and over, make a prompt of any length
)


@dataclass(frozen=True)
class Workload:
    """One kind of request.

    Attributes:
        name: in tables, files and bounds.
        frames: pictures a request.
        text_tokens: of the prompt beside the pictures', the chat template's included.
        new_tokens: written, past the model's own end where it comes earlier.
        width: of a frame, pixels.
        height: of a frame, pixels.
        clients: that ask at the same time.
        seen: the frames have been reported on before, so that only the question is new.
    """

    name: str
    frames: int
    text_tokens: int
    new_tokens: int
    width: int = 640
    height: int = 480
    clients: int = 1
    seen: bool = False


W1 = Workload("W1", 1, 60, 160)
W7 = Workload("W7", 7, 60, 240)
Q = Workload("Q", 7, 60, 40, seen=True)  # some 30 tokens of the template and the frames' marks, 30 of the question
NAMED = {workload.name: workload for workload in (W1, W7, Q)}


def grid(
    frames: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    text_tokens: Sequence[int],
    new_tokens: Sequence[int],
    clients: Sequence[int],
) -> tuple[Workload, ...]:
    """Every combination, named for what it is: `2x640x480-p60-n32-c1`."""
    return tuple(
        Workload(f"{count}x{width}x{height}-p{prompt}-n{new}-c{at_once}", count, prompt, new, width, height, at_once)
        for count, (width, height), prompt, new, at_once in product(frames, sizes, text_tokens, new_tokens, clients)
    )


def size(text: str) -> tuple[int, int]:
    """`640x480` to a width and a height.

    Raises:
        InvalidInput: it is no such thing.
    """
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise InvalidInput(f"{text} is no size of a frame: write for example 640x480.")
    return int(width), int(height)


def frame(number: int, width: int, height: int) -> ImageInput:
    """A real ultrasound frame at that size as a PNG file, another picture for each number: nothing of it was seen before."""
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
    """A prompt that makes `count(prompt)` tokens of text as near to `tokens` as whole words allow."""
    words = FILLER.split()

    def first(number: int) -> str:
        return " ".join(words[index % len(words)] for index in range(number))

    low, high = 1, max(2, tokens)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(first(middle)) <= tokens else (low, middle - 1)
    return first(low)
