"""Palettes: the three tables of a PALETTE COLOR image (PS3.3 C.7.6.3.1.5 and C.7.6.3.1.6), segmented ones too (C.7.9.2)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.formats.dicom_attributes import numbers, table

COLOURS = ("Red", "Green", "Blue")
DISCRETE, LINEAR, INDIRECT = 0, 1, 2
MOST_ENTRIES = 1 << 16
MOST_SEGMENT_BYTES = 1 << 20  # far more than MOST_ENTRIES need
LOW_BYTES = "Its palette holds 8-bit values in 16-bit entries."
SHORT = "Its palette has fewer entries than its descriptor says."


@dataclass(frozen=True)
class Palette:
    """Colours by stored value.

    Attributes:
        colours: uint8 [entries, 3].
        first: the stored value that the first entry is for; what is below takes it too, and what is above the last.
        notes: notes about the palette.
    """

    colours: NDArray[np.uint8] = field(repr=False)
    first: int
    notes: tuple[str, ...] = ()

    def apply(self, values: NDArray[np.generic]) -> NDArray[np.uint8]:
        """Convert stored values [rows, columns] to RGB."""
        return self.colours[np.clip(values.astype(np.int32) - self.first, 0, len(self.colours) - 1)]


def read_palette(name: str, dataset: Dataset, signed: bool) -> Palette:
    """Read an image's palette; `signed` is whether its pixels are.

    Raises:
        InvalidInput: a table is missing or damaged; the sentence names it.
    """
    little = dataset.original_encoding[1] is not False
    descriptors = [_descriptor(name, dataset, colour, signed) for colour in COLOURS]
    tables = [
        _entries(name, dataset, colour, descriptor, little)
        for colour, descriptor in zip(COLOURS, descriptors, strict=True)
    ]
    notes = []
    if any(len(entries) < count for entries, (count, _, _) in zip(tables, descriptors, strict=True)):
        notes.append(SHORT)
    length = max(map(len, tables))
    filled = np.stack([np.pad(entries, (0, length - len(entries)), mode="edge") for entries in tables], axis=1)
    bits = max(bits for _, _, bits in descriptors)
    highest = int(filled.max())
    if bits > 8 and highest < 256:
        notes.append(LOW_BYTES)
    depth = max(8, bits) if highest >= 256 else 8  # what a descriptor of 8 bits says of larger entries is wrong
    if highest >= 1 << depth:
        depth = 16
    return Palette((filled >> (depth - 8)).astype(np.uint8), descriptors[0][1], tuple(notes))


def _descriptor(name: str, dataset: Dataset, colour: str, signed: bool) -> tuple[int, int, int]:
    """Read a descriptor: the number of entries, the first stored value, and the bits of an entry."""
    values = numbers(dataset, f"{colour}PaletteColorLookupTableDescriptor")
    if len(values) != 3:
        raise InvalidInput(
            f"{name} lacks the DICOM attribute {colour}PaletteColorLookupTableDescriptor: send a complete file."
        )
    count, first, bits = int(values[0]) & 0xFFFF, int(values[1]) & 0xFFFF, int(values[2])
    if signed and first >= 1 << 15:
        first -= 1 << 16
    return count or MOST_ENTRIES, first, bits if 8 <= bits <= 16 else 16


def _entries(
    name: str, dataset: Dataset, colour: str, descriptor: tuple[int, int, int], little: bool
) -> NDArray[np.uint16]:
    count, _, bits = descriptor
    plain = table(dataset, f"{colour}PaletteColorLookupTableData")
    if plain:
        packed = bits == 8 and len(plain) < 2 * count  # two entries in a word
        found = _words(plain, packed, little)[:count]
    else:
        segmented = table(dataset, f"Segmented{colour}PaletteColorLookupTableData")
        if not segmented:
            raise InvalidInput(
                f"{name} lacks the DICOM attribute {colour}PaletteColorLookupTableData: send a complete file."
            )
        try:
            found = _expanded(segmented, bits == 8, little, count)
        except IndexError:
            found = np.zeros(0, np.uint16)
    if not len(found):
        raise InvalidInput(f"{name} has a damaged {colour} palette: send a correct file.")
    return found


def _words(data: bytes, packed: bool, little: bool) -> NDArray[np.uint16]:
    words = np.frombuffer(data[: len(data) // 2 * 2], "<u2" if little else ">u2")
    if not packed:
        return words.astype(np.uint16)
    entries = words.astype("<u2").view(np.uint8).astype(np.uint16)  # the low byte of a word comes first
    return np.append(entries, np.uint16(data[-1])) if len(data) % 2 else entries


def _expanded(data: bytes, packed: bool, little: bool, count: int) -> NDArray[np.uint16]:
    """Expand the segments of a table until `count` entries are there.

    Raises:
        IndexError: they are damaged.
    """
    words = _words(data[:MOST_SEGMENT_BYTES], packed, little).tolist()
    entries: list[int] = []
    _expand(words, 0, len(words), packed, count, entries, nested=False)
    return np.array(entries[:count], np.uint16)


def _expand(
    words: list[int], at: int, segments: int, packed: bool, count: int, entries: list[int], nested: bool
) -> None:
    """Expand `segments` segments from `at` on; an indirect one expands others, which are not indirect (C.7.9.2.3)."""
    while segments > 0 and at + 2 < len(words) and len(entries) < count:
        operation, length = words[at], words[at + 1]
        at, segments = at + 2, segments - 1
        if length < 1:  # each adds something, or their number has no bound
            raise IndexError
        if operation == DISCRETE:
            entries += words[at : at + length]
            at += length
        elif operation == LINEAR and entries:
            entries += [round(level) for level in np.linspace(entries[-1], words[at], length + 1)[1:].tolist()]
            at += 1
        elif operation == INDIRECT and not nested:
            parts, bits = (4, 8) if packed else (2, 16)
            offset = sum(part << bits * place for place, part in enumerate(words[at : at + parts]))  # in bytes
            at += parts
            _expand(words, offset if packed else offset // 2, length, packed, count, entries, nested=True)
        else:
            raise IndexError
