"""Decode frames that are still pictures, each by itself, to RGB."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import UID

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.contracts.request import Window
from echovlm_edge.runtime.formats.dicom_pixel_data import PixelData
from echovlm_edge.runtime.formats.dicom_pixel_format import PALETTE, PixelFormat, read_pixel_format
from echovlm_edge.runtime.imaging.dicom.colour import to_rgb
from echovlm_edge.runtime.imaging.dicom.frame_decoder import GREY, YCBCR, Samples, decode_frame, syntax_name
from echovlm_edge.runtime.imaging.dicom.grey import (
    GreyScale,
    read_grey_scale,
    shows_stored_bytes,
    to_grey,
    value_range,
)
from echovlm_edge.runtime.imaging.dicom.palette import read_palette


@dataclass(frozen=True)
class Picture:
    """One whole frame as it is shown.

    Attributes:
        pixels: uint8 [height, width, 3], RGB.
        window: of grey values, where one was applied.
        notes: what to say about it.
    """

    pixels: NDArray[np.uint8] = field(repr=False)
    window: Window | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class StillFrames:
    """The frames of a file.

    Attributes:
        height, width: of a frame as it is stored.
        count: whole frames that are there.
        stated: frames that the header says there are.
    """

    height: int
    width: int
    count: int
    stated: int
    _name: str
    _syntax: UID
    _format: PixelFormat
    _dataset: Dataset = field(repr=False)
    _pixel_data: PixelData = field(repr=False)

    def pictures(self, indices: Sequence[int]) -> Iterator[Picture]:
        """Decode frames in the given order, one at a time. Grey values without a window are scaled by the range of all frames.

        Raises:
            InvalidInput: a frame is damaged, or an attribute that it needs is missing.
            NotPossibleHere: this machine has no decoder for the frames.
        """
        palette = read_palette(self._name, self._dataset, self._format.signed) if self._has_palette else None
        limits: tuple[float, float] | None = None
        for index in indices:
            samples = self._samples(index)
            if palette:
                yield Picture(palette.apply(samples.values), notes=(*samples.notes, *palette.notes))
            elif samples.colour == GREY:
                scale = read_grey_scale(self._dataset, self._format, index)
                needs_range = not (scale.window or scale.voi or self._shows_bytes(samples, scale))
                if needs_range and not limits:
                    limits = self._range(indices, samples)
                yield _grey_picture(samples, scale, limits if needs_range else None)
            else:
                pixels = to_rgb(samples.values, samples.depth, ycbcr=samples.colour == YCBCR)
                yield Picture(pixels, notes=samples.notes)

    @property
    def _has_palette(self) -> bool:
        return self._format.photometric == PALETTE

    def _samples(self, index: int) -> Samples:
        return decode_frame(self._name, self._pixel_data.read(index), self._format, self._syntax)

    def _shows_bytes(self, samples: Samples, scale: GreyScale) -> bool:
        return shows_stored_bytes(scale, samples.depth)

    def _range(self, indices: Sequence[int], first: Samples) -> tuple[float, float]:
        """Find the lowest and highest value of all frames; each frame is decoded again later, to save memory."""
        ranges = []
        for place, index in enumerate(indices):
            samples = self._samples(index) if place else first
            ranges.append(value_range(samples.values, read_grey_scale(self._dataset, self._format, index)))
        found = [one for one in ranges if one]
        return (min(low for low, _ in found), max(high for _, high in found)) if found else (0.0, 0.0)


def _grey_picture(samples: Samples, scale: GreyScale, limits: tuple[float, float] | None) -> Picture:
    window = None
    if scale.window and not scale.voi:
        window = scale.window
    elif limits:
        window = Window((limits[0] + limits[1]) / 2, limits[1] - limits[0])
    lowest = -(1 << samples.depth - 1) if samples.values.dtype.kind == "i" else 0
    grey = to_grey(samples.values, scale, limits or (float(lowest), float(lowest + (1 << samples.depth) - 1)))
    return Picture(np.repeat(grey[..., None], 3, axis=2), window, (*samples.notes, *scale.notes))


def open_stills(name: str, dataset: Dataset, pixel_data: PixelData, syntax: UID, max_pixels: int) -> StillFrames:
    """Check what a header states about the frames.

    Raises:
        InvalidInput: an attribute is missing or not supported, a frame has over `max_pixels`, or no frame is complete.
    """
    pixels = read_pixel_format(name, dataset)
    if pixels.pixels > max_pixels:
        raise InvalidInput(
            f"{name} has {pixels.columns:,} x {pixels.rows:,} pixels, more than {max_pixels:,} in all: send a smaller one."
        )
    if not pixel_data.count:
        raise InvalidInput(
            f"{name} cannot be decoded ({syntax_name(syntax)}): its pixel data is truncated, no frame is whole."
        )
    return StillFrames(
        pixels.rows, pixels.columns, pixel_data.count, pixel_data.stated, name, syntax, pixels, dataset, pixel_data
    )
