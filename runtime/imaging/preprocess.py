"""Resize frames for the model and cut them into patches, with the arithmetic of Qwen2-VL's image processor, without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from echovlm_edge.runtime.contracts.errors import ImageTokensOutOfRange, InvalidInput
from echovlm_edge.runtime.contracts.request import Resolution

MAX_ASPECT_RATIO = 200


@dataclass(frozen=True)
class PreprocessSettings:
    """The settings of a preprocessor_config.json; the defaults are Qwen2-VL's."""

    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    image_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    rescale_factor: float = 1 / 255

    @property
    def unit(self) -> int:
        """Frames are resized to multiples of this many pixels: one merged patch."""
        return self.patch_size * self.merge_size

    @property
    def resolution(self) -> Resolution:
        """The settings that decide a frame's size."""
        return Resolution(self.unit, self.min_pixels, self.max_pixels)

    @property
    def image_tokens(self) -> tuple[int, int]:
        """The least and the largest bound on a frame's visual tokens that `bounded` takes."""
        return -(-self.min_pixels // self.unit**2), self.max_pixels // self.unit**2

    def bounded(self, image_tokens: int | None) -> PreprocessSettings:
        """Lower the bound on a frame to so many visual tokens; None leaves it as it is.

        Raises:
            ImageTokensOutOfRange: the frame's bound is lower already, or its least number of pixels is above that.
        """
        if image_tokens is None:
            return self
        check_image_tokens(image_tokens, *self.image_tokens)
        return replace(self, max_pixels=image_tokens * self.unit**2)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> PreprocessSettings:
        """Read a parsed preprocessor_config.json; `size` may carry the pixel limits under either of its two spellings."""
        size = config.get("size") or {}
        spelled = {
            "min_pixels": size.get("min_pixels", size.get("shortest_edge")),
            "max_pixels": size.get("max_pixels", size.get("longest_edge")),
        }
        known: dict[str, Any] = {key: value for key, value in spelled.items() if value is not None}
        known |= {key: value for key, value in config.items() if key in cls.__dataclass_fields__ and value is not None}
        for name in ("image_mean", "image_std"):
            if name in known:
                known[name] = tuple(known[name])
        return cls(**known)

    def as_config(self) -> dict[str, Any]:
        """Write the settings in the form that `from_config` reads."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def check_image_tokens(asked: int, least: int, most: int) -> None:
    """Check a bound on a frame's visual tokens.

    Raises:
        ImageTokensOutOfRange: it is not between `least` and `most`.
    """
    if not least <= asked <= most:
        raise ImageTokensOutOfRange(
            f"image_tokens {asked:,} is no bound that a frame can have here: ask for {least:,} to {most:,} tokens, or for none to have "
            f"the default of {most:,}."
        )


@dataclass(frozen=True)
class Patches:
    """One frame, ready for the vision encoder.

    Attributes:
        values: float32 [patches, channels * temporal_patch_size * patch_size²], where 2 x 2 neighbours are adjacent.
        grid: the number of patches in time, height and width.
    """

    values: NDArray[np.float32] = field(repr=False)
    grid: tuple[int, int, int]


def smart_resize(
    height: int, width: int, settings: PreprocessSettings | Resolution, name: str = "The image"
) -> tuple[int, int]:
    """Choose height and width in multiples of 28 pixels, with the area within the limits and nearly the same aspect ratio.

    Apply this only once: applied to its own result, it can give another size.

    Raises:
        InvalidInput: the frame is over 200 times as long as wide, or smaller than a merged patch; the sentence calls it `name`.
    """
    if min(height, width) < settings.unit:  # a few pixels would be enlarged to a picture that gets a report
        raise InvalidInput(
            f"{name} has {width} x {height} pixels: send one of at least {settings.unit} x {settings.unit}."
        )
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise InvalidInput(
            f"{name} of {width} x {height} pixels is over {MAX_ASPECT_RATIO} times as long as wide: crop it."
        )
    unit = settings.unit
    rounded_height, rounded_width = round(height / unit) * unit, round(width / unit) * unit
    if rounded_height * rounded_width > settings.max_pixels:
        shrink = math.sqrt(height * width / settings.max_pixels)
        return max(unit, math.floor(height / shrink / unit) * unit), max(unit, math.floor(width / shrink / unit) * unit)
    if rounded_height * rounded_width < settings.min_pixels:
        grow = math.sqrt(settings.min_pixels / (height * width))
        return math.ceil(height * grow / unit) * unit, math.ceil(width * grow / unit) * unit
    return rounded_height, rounded_width


def most_pixels(resolution: Resolution) -> int:
    """Return an upper bound of the pixels of any frame that `smart_resize` allows."""
    area = max(resolution.min_pixels, resolution.max_pixels)
    side = (
        math.ceil(math.sqrt(MAX_ASPECT_RATIO * area)) + resolution.unit
    )  # the longest side, at the largest aspect ratio
    return area + 2 * resolution.unit * side + resolution.unit**2  # each side is rounded up by less than a unit


def fit(
    pixels: NDArray[np.uint8], settings: PreprocessSettings | Resolution, name: str = "The image"
) -> NDArray[np.uint8]:
    """Resize a frame, uint8 [height, width, 3], to the size at which the model sees it.

    Raises:
        InvalidInput: as `smart_resize`.
    """
    height, width = smart_resize(pixels.shape[0], pixels.shape[1], settings, name)
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def patch_grid(height: int, width: int, settings: PreprocessSettings) -> tuple[int, int, int]:
    """Return the number of patches in time, height and width of a resized frame."""
    return 1, height // settings.patch_size, width // settings.patch_size


def cut(fitted: NDArray[np.uint8], settings: PreprocessSettings) -> Patches:
    """Normalise a resized frame, uint8 [height, width, 3], and cut it into patches."""
    # One table of 256 values per channel, normalised in the same order of operations as the published processor.
    levels = (np.arange(256) * settings.rescale_factor).astype(np.float32)[:, None]
    table = (levels - np.array(settings.image_mean, np.float32)) / np.array(settings.image_std, np.float32)
    channels = np.stack([table[fitted[..., channel], channel] for channel in range(3)])
    size, merge, time = settings.patch_size, settings.merge_size, settings.temporal_patch_size
    grid = patch_grid(fitted.shape[0], fitted.shape[1], settings)
    _, rows, columns = grid
    pieces = channels.reshape(3, rows // merge, merge, size, columns // merge, merge, size)
    ordered = pieces.transpose(1, 4, 2, 5, 0, 3, 6)  # merged row, merged column, row, column, channel, y, x
    twice = np.repeat(ordered.reshape(rows * columns, 3, 1, size * size), time, axis=2)
    return Patches(twice.reshape(rows * columns, -1).astype(np.float32), grid)


def patchify(pixels: NDArray[np.uint8], settings: PreprocessSettings) -> Patches:
    """Resize and normalise a decoded frame, uint8 [height, width, 3], and cut it into patches.

    Raises:
        InvalidInput: as `smart_resize`.
    """
    return cut(fit(pixels, settings), settings)
