"""Pictures that hardly are ultrasound are found, and everything that an ultrasound machine shows passes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from matplotlib import cbook
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from demo.simulate import simulate
from echovlm_edge.runtime.imaging.image_file import decode_image
from echovlm_edge.runtime.imaging.likeness import is_unlike_ultrasound
from echovlm_edge.runtime.imaging.sample import sample_image

Pixels = NDArray[np.uint8]
SEEDS = range(28)  # simulated studies of all regions
LINES = [f"Patient report, line {number}: findings and impression are written here." for number in range(24)]


@cache
def b_mode(seed: int) -> Pixels:
    return np.repeat(simulate(seed).image[..., None], 3, axis=2)


def written_on(pixels: Pixels, text: str, fill: str) -> Pixels:
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    for line in range(4):
        draw.text((4, 4 + 14 * line), text, fill, font=ImageFont.load_default())
    return np.asarray(picture)


def doppler(pixels: Pixels) -> Pixels:
    """Colour flow in a box of half the picture's width and height: red to blue, at full saturation."""
    coloured = pixels.copy()
    height, width = pixels.shape[:2]
    box = coloured[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4]
    flow = np.linspace(-1, 1, box.shape[1])
    box[..., 0], box[..., 1], box[..., 2] = 255 * np.clip(flow, 0, 1), 30, 255 * np.clip(-flow, 0, 1)
    return coloured


def elastography(pixels: Pixels) -> Pixels:
    """Colours of all hues over three quarters of the picture, through which its grey shows."""
    hues = np.asarray(Image.fromarray(pixels[..., 0]).convert("L"))
    colours = np.stack([hues, np.full_like(hues, 255), np.full_like(hues, 255)], axis=2)
    mixed = (np.asarray(Image.fromarray(colours, "HSV").convert("RGB")) // 2 + pixels // 2).astype(np.uint8)
    mixed[: mixed.shape[0] // 4] = pixels[: mixed.shape[0] // 4]
    return mixed


def tinted(pixels: Pixels) -> Pixels:
    grey = pixels[..., 0].astype(np.float64)
    return np.stack([grey, 0.75 * grey, 0.45 * grey], axis=2).astype(np.uint8)


SHOWN: dict[str, Callable[[Pixels], Pixels]] = {
    "as it is": lambda pixels: pixels,
    "dark": lambda pixels: (pixels // 12).astype(np.uint8),
    "bright": lambda pixels: np.minimum(pixels.astype(np.int16) + 90, 255).astype(np.uint8),
    "inverted": lambda pixels: 255 - pixels,
    "inverted and bright": lambda pixels: 255 - pixels // 2,
    "tinted": tinted,
    "Doppler": doppler,
    "inverted with Doppler": lambda pixels: doppler(255 - pixels),
    "elastography": elastography,
    "annotated": lambda pixels: written_on(pixels, "LT BREAST 3 cm  MI 1.1  TIS 0.4", "yellow"),
    "annotated on white": lambda pixels: written_on(255 - pixels, "LT BREAST 3 cm  MI 1.1", "black"),
    "cropped": lambda pixels: pixels[pixels.shape[0] // 3 :, pixels.shape[1] // 4 : 3 * pixels.shape[1] // 4],
}


@pytest.mark.parametrize("how", SHOWN)
def test_what_a_machine_shows_passes(how: str) -> None:
    assert [seed for seed in SEEDS if is_unlike_ultrasound(SHOWN[how](b_mode(seed)))] == []


def test_a_real_frame_passes() -> None:
    (frame,) = decode_image(sample_image())
    for show in SHOWN.values():
        assert not is_unlike_ultrasound(show(frame.pixels))


def page(size: tuple[int, int], paper: int, ink: int) -> Pixels:
    picture = Image.new("RGB", size, (paper,) * 3)
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(LINES):
        draw.text((20, 20 + number * (size[1] - 40) // len(LINES)), line, (ink,) * 3)
    return np.asarray(picture)


def photograph() -> Pixels:
    return np.asarray(Image.open(cbook.get_sample_data("grace_hopper.jpg")).convert("RGB"))


def landscape() -> Pixels:
    """A sky above a meadow with flowers of several colours."""
    random = np.random.default_rng(1)
    colours = np.where(np.arange(300)[:, None, None] < 140, (90, 150, 230), (60, 150, 40)) + np.zeros((300, 400, 3))
    flowers = random.random((300, 400)) < 0.2
    colours[flowers] = random.choice([(230, 40, 60), (240, 220, 40), (200, 60, 220)], int(flowers.sum()))
    return np.clip(colours + random.normal(0, 12, colours.shape), 0, 255).astype(np.uint8)


def even(*colour: int) -> Pixels:
    return np.full((120, 160, 3), colour, np.uint8)


OTHERS: dict[str, Callable[[], Pixels]] = {
    "black": lambda: even(0, 0, 0),
    "white": lambda: even(255, 255, 255),
    "grey": lambda: even(110, 110, 110),
    "one colour": lambda: even(200, 30, 40),
    "nearly even": lambda: even(50, 50, 50) + np.random.default_rng(0).integers(0, 3, (120, 160, 3), dtype=np.uint8),
    "page": lambda: page((500, 700), 255, 0),
    "grey page": lambda: page((400, 560), 245, 40),
    "page as the model sees it": lambda: np.asarray(
        Image.fromarray(page((1000, 1400), 255, 0)).resize((392, 560), Image.Resampling.BICUBIC)
    ),
    "photograph": photograph,
    "landscape": landscape,
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_hardly_is_ultrasound_is_found(what: str) -> None:
    assert is_unlike_ultrasound(OTHERS[what]())


@pytest.mark.parametrize("shape", [(28, 28), (28, 1000), (1000, 28)])
def test_any_shape_is_judged(shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 1), dtype=np.uint8).repeat(3, axis=2)
    assert not is_unlike_ultrasound(noise)
