"""Convert grey samples to display values: modality transformation, window or lookup table, inversion (PS3.3 C.11)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from echovlm_edge.runtime.contracts.request import Window
from echovlm_edge.runtime.formats.dicom_attributes import items, number, numbers, table, text, value, whole
from echovlm_edge.runtime.formats.dicom_pixel_format import PixelFormat

Floats = NDArray[np.float64]

LINEAR, LINEAR_EXACT, SIGMOID = "LINEAR", "LINEAR_EXACT", "SIGMOID"
UNUSABLE_WINDOW = "Its grey window cannot be used: the range of the frame itself is shown."
MOST_TABLE_ENTRIES = 1 << 16


@dataclass(frozen=True)
class LookupTable:
    """A Modality or VOI LUT (PS3.3 C.11.1.1 and C.11.2.1.1): entries from the value `first` on, the highest possible one `top`."""

    entries: Floats = field(repr=False)
    first: int
    top: float

    def apply(self, values: Floats) -> Floats:
        """Look values up; those below the first take the first entry, those above the last the last."""
        return self.entries[np.clip(values - self.first, 0, len(self.entries) - 1).astype(np.int64)]


@dataclass(frozen=True)
class GreyScale:
    """How the stored values of one frame become grey.

    Attributes:
        slope, intercept: stored values to the file's units, unless there is
        modality: a table for it.
        rescaled: whether either changes a value.
        window: which of those values are shown from black to white, by
        function: LINEAR, LINEAR_EXACT or SIGMOID; or there is
        voi: a table for it; or none of them.
        inverted: low values are bright.
        padding: stored values from one to another that mean no picture.
        notes: what to say about it.
    """

    slope: float
    intercept: float
    modality: LookupTable | None
    rescaled: bool
    window: Window | None
    function: str
    voi: LookupTable | None
    inverted: bool
    padding: tuple[int, int] | None
    notes: tuple[str, ...] = ()

    def in_units(self, stored: Floats) -> Floats:
        """Convert stored values to the file's units."""
        return self.modality.apply(stored) if self.modality else stored * self.slope + self.intercept


def read_grey_scale(dataset: Dataset, pixels: PixelFormat, index: int) -> GreyScale:
    """Read how a header maps the grey values of a frame; absent, empty or absurd attributes are ignored."""
    little = dataset.original_encoding[1] is not False
    transforms = list(_groups(dataset, index, "PixelValueTransformationSequence"))
    slope = next((found for one in transforms if (found := number(one, "RescaleSlope"))), None)
    intercept = next((found for one in transforms if (found := number(one, "RescaleIntercept")) is not None), None)
    modality = _first_table(items(dataset, "ModalityLUTSequence"), pixels.signed, little)
    in_units_signed = not modality and (pixels.signed or (intercept or 0) < 0 or (slope or 1) < 0)
    windows = list(_groups(dataset, index, "FrameVOILUTSequence"))
    window, function, unusable = _first_window(windows)
    voi = None
    for one in windows:
        voi = voi or _first_table(items(one, "VOILUTSequence"), in_units_signed, little)
    return GreyScale(
        slope=1.0 if slope is None else slope,
        intercept=intercept or 0.0,
        modality=modality,
        rescaled=bool(modality) or slope not in (None, 1.0) or intercept not in (None, 0.0),
        window=window,
        function=function,
        voi=voi,
        inverted=pixels.photometric == "MONOCHROME1" or text(dataset, "PresentationLUTShape") == "INVERSE",
        padding=_padding(dataset, pixels),
        notes=(UNUSABLE_WINDOW,) if unusable and not window and not voi else (),
    )


def shows_stored_bytes(scale: GreyScale, depth: int) -> bool:
    """Whether stored values are shown in their full range: 8 bits, or 1, without window or transformation."""
    return depth in (1, 8) and not (scale.rescaled or scale.window or scale.voi)


def value_range(values: NDArray[Any], scale: GreyScale) -> tuple[float, float] | None:
    """Return the lowest and highest value of a frame in the file's units, without padding; None where there is only padding."""
    if scale.padding:
        low, high = scale.padding
        values = values[(values < low) | (values > high)]
    if not values.size:
        return None
    if scale.modality and values.dtype.itemsize <= 2:
        shown = scale.in_units(np.unique(values).astype(np.float64))
    else:
        shown = scale.in_units(np.array([values.min(), values.max()], np.float64))
    return float(shown.min()), float(shown.max())


def to_grey(values: NDArray[Any], scale: GreyScale, limits: tuple[float, float] | None) -> NDArray[np.uint8]:
    """Convert stored values [rows, columns] to grey, uint8.

    Args:
        values: of the frame.
        scale: how they are shown.
        limits: the values in the file's units that are black and white where `scale` has neither window nor table.
    """
    if values.dtype.itemsize > 2:
        return _levels(values.astype(np.float64), scale, limits)
    # Of 16 bits every value is worked out once.
    unsigned = np.dtype(f"u{values.dtype.itemsize}")
    every = np.arange(1 << 8 * values.dtype.itemsize, dtype=unsigned).view(values.dtype)
    return _levels(every.astype(np.float64), scale, limits)[values.view(unsigned)]


def _levels(stored: Floats, scale: GreyScale, limits: tuple[float, float] | None) -> NDArray[np.uint8]:
    shown = scale.in_units(stored)
    if scale.voi:
        share = scale.voi.apply(shown) / scale.voi.top
    elif scale.window:
        share = _windowed(shown, scale.window, scale.function)
    else:
        low, high = limits or (0.0, 0.0)
        share = (shown - low) / (high - low) if high > low else np.zeros_like(shown)
    share = np.clip(share, 0, 1)
    grey = np.rint(255 * (1 - share if scale.inverted else share)).astype(np.uint8)
    if scale.padding:
        grey[(stored >= scale.padding[0]) & (stored <= scale.padding[1])] = 0
    return grey


def _windowed(values: Floats, window: Window, function: str) -> Floats:
    """Map values to 0 … 1 (still to be clipped) by PS3.3 C.11.2.1.2.1 (LINEAR), C.11.2.1.3.1 (SIGMOID) and C.11.2.1.3.2 (LINEAR_EXACT)."""
    center, width = window
    if function == SIGMOID:
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    if function == LINEAR_EXACT:
        return (values - center) / width + 0.5
    if width == 1:
        return (values > center - 0.5).astype(np.float64)
    return (values - (center - 0.5)) / (width - 1) + 0.5


def _groups(dataset: Dataset, index: int, macro: str) -> Iterator[Dataset]:
    """Yield the data sets that may have a functional group macro's attributes: the frame's, all frames' (PS3.3 C.7.6.16), the image's."""
    frames = items(dataset, "PerFrameFunctionalGroupsSequence")
    for group in (*frames[index : index + 1], *items(dataset, "SharedFunctionalGroupsSequence")[:1]):
        yield from items(group, macro)[:1]
    yield dataset


def _first_window(groups: list[Dataset]) -> tuple[Window | None, str, bool]:
    """Find the first plausible window and its function, and whether there is an implausible one."""
    unusable = False
    for group in groups:
        if value(group, "WindowCenter") is None and value(group, "WindowWidth") is None:
            continue
        function = text(group, "VOILUTFunction")
        for center, width in zip(numbers(group, "WindowCenter"), numbers(group, "WindowWidth"), strict=False):
            if width > 0:
                # LINEAR is defined for widths from 1 on; where units are small, writers mean the window itself.
                exact = function == LINEAR_EXACT or (function != SIGMOID and width < 1)
                return (
                    Window(center, width),
                    LINEAR_EXACT if exact else SIGMOID if function == SIGMOID else LINEAR,
                    False,
                )
        unusable = True
    return None, LINEAR, unusable


def _first_table(sequence: list[Dataset], signed: bool, little: bool) -> LookupTable | None:
    """Find the first plausible table."""
    for item in sequence:
        descriptor = numbers(item, "LUTDescriptor")
        if len(descriptor) != 3:
            continue
        count, first, bits = (
            int(descriptor[0]) & 0xFFFF or MOST_TABLE_ENTRIES,
            int(descriptor[1]) & 0xFFFF,
            int(descriptor[2]),
        )
        entries = _entries(item, count, bits, little)
        if not len(entries):
            continue
        if signed and first >= 1 << 15:
            first -= 1 << 16
        depth = max(bits if 1 <= bits <= 16 else 1, int(entries.max()).bit_length())
        return LookupTable(entries.astype(np.float64), first, float((1 << depth) - 1))
    return None


def _entries(item: Dataset, count: int, bits: int, little: bool) -> NDArray[np.uint16]:
    packed = table(item, "LUTData")
    if packed and bits <= 8 and len(packed) < 2 * count:
        return np.frombuffer(packed, np.uint8)[:count].astype(np.uint16)
    if packed:
        return np.frombuffer(packed[: len(packed) // 2 * 2], "<u2" if little else ">u2")[:count].astype(np.uint16)
    return (np.array(numbers(item, "LUTData")).astype(np.int64) & 0xFFFF)[:count].astype(np.uint16)


def _padding(dataset: Dataset, pixels: PixelFormat) -> tuple[int, int] | None:
    """PixelPaddingValue and PixelPaddingRangeLimit (PS3.3 C.7.5.1.1.2): the range of stored values that are padding."""
    first = whole(dataset, "PixelPaddingValue")
    if first is None:
        return None
    last = whole(dataset, "PixelPaddingRangeLimit")
    ends = [_as_stored(end, pixels) for end in (first, first if last is None else last)]
    return min(ends), max(ends)


def _as_stored(found: int, pixels: PixelFormat) -> int:
    """Reinterpret a value as signed or unsigned, as the pixels are."""
    bits = found & (1 << pixels.stored) - 1
    return bits - (1 << pixels.stored) if pixels.signed and bits >> (pixels.stored - 1) else bits
