"""Find each frame's bytes in a DICOM file, and read them on demand: a cine of hundreds of megabytes is never loaded as a whole.

Depends on pydicom and the standard library only, because clients cut cines with it.
"""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.formats.dicom_attributes import table, whole
from echovlm_edge.runtime.formats.dicom_pixel_format import PixelFormat, read_pixel_format
from echovlm_edge.runtime.formats.dicom_syntaxes import NATIVE

PIXEL_DATA = 0x7FE00010
ITEM = 0xFFFEE000
ITEM_BYTES = b"\xfe\xff\x00\xe0"
UNDEFINED = 0xFFFFFFFF
LONG_VALUES = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"UN")  # with a length of 32 bits, PS3.5 7.1.2
MOST_FRAGMENTS = 1 << 18  # far more than any cine has; each costs a read
# The first bytes of codestreams: JPEG and JPEG-LS, JPEG 2000 bare and in a JP2 file, JPEG XL bare and in a container.
CODESTREAM_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP", b"\xff\x0a", b"\0\0\0\x0cJXL")
START_BYTES = 8
MOST_FRAMES = (1 << 31) - 1  # that an integer string can say (PS3.5 6.2)


@dataclass(frozen=True)
class Fragment:
    """One item of encapsulated pixel data: where its bytes are, and whether all of them are there."""

    start: int
    length: int
    whole: bool


@dataclass(frozen=True)
class PixelData:
    """The frames of a DICOM file.

    Attributes:
        stated: frames that the header states, at least 1.
        count: complete frames, at most `stated`; an interrupted cine or a truncated file has fewer. For a video this number has
            no meaning, because only its decoder can count the frames.
        encapsulated: whether frames are codestreams; otherwise all have one size.
    """

    stated: int
    count: int
    encapsulated: bool
    _file: BinaryIO = field(repr=False)
    _frames: Sequence[tuple[Fragment, ...]] = field(repr=False, default=())  # encapsulated
    _fragments: tuple[Fragment, ...] = field(repr=False, default=())
    _start: int = 0  # native
    _frame_bits: int = 0
    _swapped: bool = False  # bytes stored as words of the other order

    def read(self, index: int) -> bytes:
        """Read one frame: its codestream, or its stored bytes (with bytes in big-endian words swapped into byte order).

        Frames of single bits may begin within a byte (PS3.5 8.1.1): they are shifted to begin at the first bit.

        Raises:
            IndexError: there is no such frame.
        """
        if not 0 <= index < self.count:
            raise IndexError(index)
        if self.encapsulated:
            return self._joined(self._frames[index])
        first, end = index * self._frame_bits, (index + 1) * self._frame_bits
        read = self._bytes(first // 8, -(-end // 8))
        if not self._frame_bits % 8:
            return read
        bits = int.from_bytes(read, "little") >> first % 8 & (1 << self._frame_bits) - 1
        return bits.to_bytes(-(-self._frame_bits // 8), "little")

    def stream(self) -> bytes:
        """Read all fragments joined, which is the video of a file that contains one."""
        return self._joined(self._fragments)

    def _bytes(self, first: int, end: int) -> bytes:
        if not self._swapped:
            return _read(self._file, self._start + first, end - first)
        odd = first % 2
        words = bytearray(_read(self._file, self._start + first - odd, (end - first + odd + 1) // 2 * 2))
        words[::2], words[1::2] = words[1::2], words[::2]
        return bytes(words[odd : odd + end - first])

    def _joined(self, fragments: Sequence[Fragment]) -> bytes:
        return b"".join(_read(self._file, fragment.start, fragment.length) for fragment in fragments)


def transfer_syntax(dataset: Dataset) -> UID:
    """Return a data set's transfer syntax: from its file meta information, or else the one that pydicom detected."""
    stated = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if stated:
        return UID(str(stated).strip(" \0"))
    implicit, little = dataset.original_encoding
    if implicit is False:
        return ExplicitVRBigEndian if little is False else ExplicitVRLittleEndian
    return ImplicitVRLittleEndian


def stated_frames(dataset: Dataset) -> int:
    """Read NumberOfFrames from a header; 1 if it is missing or implausible."""
    stated = whole(dataset, "NumberOfFrames") or 1
    return stated if 1 <= stated <= MOST_FRAMES else 1


def locate(file: BinaryIO, dataset: Dataset, name: str = "The file") -> PixelData:
    """Find the frames in a file from which the data set was read up to its pixels (`stop_before_pixels`).

    Args:
        file: positioned where pydicom left it, at the tag of the pixel data.
        dataset: the data set that pydicom read.
        name: what error messages call the file.

    Raises:
        InvalidInput: there is no pixel data, it is empty, or the header does not say how large a frame is.
    """
    little = dataset.original_encoding[1] is not False
    length, words = _value_length(file, little)
    if length is None:
        if "Rows" in dataset:
            raise InvalidInput(f"{name} lacks the DICOM attribute PixelData: send a complete file.")
        raise InvalidInput(f"{name} is a DICOM file without an image: send one with pixel data.")
    start = file.tell()
    present = _size(file) - start
    if not length or not present:
        raise InvalidInput(f"{name} is a DICOM file whose pixel data is empty: send a complete file.")
    stated, syntax = stated_frames(dataset), transfer_syntax(dataset)
    in_items = length == UNDEFINED and _read(file, start, 4) == ITEM_BYTES  # whatever the transfer syntax says
    file.seek(start)
    if in_items or syntax not in NATIVE:
        return _encapsulated_frames(file, stated, _extended_offsets(dataset, little), name)
    end = present if length == UNDEFINED else min(present, length)
    pixels = read_pixel_format(name, dataset)
    frame_bits = _frame_bits(pixels, 8 * end, stated)
    # PS3.5 7.3: the bytes of OW are swapped in big endian, whatever the words hold.
    swapped = words and not little and pixels.allocated <= 8
    there = min(stated, (end // 2 * 2 if swapped else end) * 8 // frame_bits)
    return PixelData(stated, there, False, file, _start=start, _frame_bits=frame_bits, _swapped=swapped)


def _value_length(file: BinaryIO, little: bool) -> tuple[int | None, bool]:
    """Read the length of the value that follows, None if no pixel data follows, and whether it has 16-bit words (OW).

    Afterwards the file stands at the value.
    """
    order = "<" if little else ">"
    head = file.read(8)
    if len(head) < 8:
        return None, False
    group, element = struct.unpack(order + "HH", head[:4])
    if group << 16 | element != PIXEL_DATA:
        return None, False
    words = head[4:6] == b"OW"
    if head[4:6] in LONG_VALUES:
        head = bytes(4) + file.read(4)
    length: int = struct.unpack(order + "L", head[4:].ljust(4, b"\0"))[0]
    return length, words


def _frame_bits(pixels: PixelFormat, bits_there: int, stated: int) -> int:
    """Return a native frame's size. Frames labelled YBR_FULL_422 are often stored without subsampling: their length tells which."""
    if not pixels.halved_chroma:
        return pixels.frame_bits
    full, halved = pixels.frame_bits, pixels.frame_bits * 2 // 3
    if bits_there >= stated * full:
        return full
    if bits_there >= stated * halved:
        return halved
    padding = 8  # data shorter than stated: of whole frames, and a byte to make it even
    return full if bits_there % halved > padding >= bits_there % full else halved


def _extended_offsets(dataset: Dataset, little: bool) -> tuple[int, ...]:
    """Read the Extended Offset Table, PS3.3 C.7.6.3.1.8."""
    stored = table(dataset, "ExtendedOffsetTable")
    count = len(stored) // 8
    return struct.unpack(f"{'<' if little else '>'}{count}Q", stored[: 8 * count])


def _encapsulated_frames(file: BinaryIO, stated: int, extended: tuple[int, ...], name: str) -> PixelData:
    items = _items(file, name)
    if not any(item.length for item in items[1:]):
        raise InvalidInput(f"{name} is a DICOM file whose pixel data is empty: send a complete file.")
    basic_item, fragments = items[0], items[1:]
    stored = _read(file, basic_item.start, basic_item.length)
    basic = struct.unpack(f"<{len(stored) // 4}L", stored[: len(stored) // 4 * 4])
    # First try offset tables, if they fit the fragments. An offset is the distance from the first fragment's tag to a fragment's tag.
    places = [fragment.start - fragments[0].start for fragment in fragments]
    frames: list[tuple[Fragment, ...]] = []
    for offsets in (extended, basic):
        frames = frames or _by_offsets(fragments, places, offsets, stated)
    frames = frames or _by_content(file, fragments, stated)
    complete = [frame for frame in frames[:stated] if all(fragment.whole for fragment in frame)]
    return PixelData(stated, len(complete), True, file, complete, tuple(fragments))


def _items(file: BinaryIO, name: str) -> list[Fragment]:
    """List the items from here to the sequence delimiter, or to where the file ends or is damaged."""
    found: list[Fragment] = []
    at, end = file.tell(), _size(file)
    while at + 8 <= end:
        group, element, length = struct.unpack("<HHL", _read(file, at, 8))
        if group << 16 | element != ITEM or length == UNDEFINED:
            break
        there = min(length, end - at - 8)
        found.append(Fragment(at + 8, there, there >= length - 1))  # some writers omit the last byte, which is padding
        if len(found) > MOST_FRAGMENTS:
            raise InvalidInput(f"{name} has its pixel data in over {MOST_FRAGMENTS:,} pieces: send a file with fewer.")
        at += 8 + length
    return found


def _by_offsets(
    fragments: list[Fragment], places: list[int], offsets: tuple[int, ...], stated: int
) -> list[tuple[Fragment, ...]]:
    """Group fragments to frames by an offset table; empty if the table does not fit these fragments."""
    if not offsets or len(offsets) > stated or (len(offsets) < stated == len(fragments)):
        return []
    if offsets[0] != 0 or any(later <= earlier for earlier, later in itertools.pairwise(offsets)):
        return []
    there = [offset for offset in offsets if places and offset <= places[-1]]  # the others are beyond the truncated end
    numbered = {place: number for number, place in enumerate(places)}
    if not all(offset in numbered for offset in there):
        return []
    firsts = [numbered[offset] for offset in there]
    return [tuple(fragments[first:end]) for first, end in zip(firsts, [*firsts[1:], len(fragments)], strict=True)]


def _by_content(file: BinaryIO, fragments: list[Fragment], stated: int) -> list[tuple[Fragment, ...]]:
    """Group fragments to frames without a table: one fragment each, or by the first or last bytes of codestreams."""
    if not fragments or stated == 1:
        return [tuple(fragments)] if fragments else []
    if len(fragments) == stated:
        return [(fragment,) for fragment in fragments]
    starts = [_read(file, one.start, min(one.length, START_BYTES)).startswith(CODESTREAM_STARTS) for one in fragments]
    if not starts[0]:  # nothing that has a start of its own, such as run lengths: a fragment is a frame (PS3.5 A.4.2)
        return [(fragment,) for fragment in fragments]
    firsts = [number for number, start in enumerate(starts) if start]
    return [tuple(fragments[first:end]) for first, end in zip(firsts, [*firsts[1:], len(fragments)], strict=True)]


def _read(file: BinaryIO, start: int, length: int) -> bytes:
    file.seek(start)
    return file.read(length)


def _size(file: BinaryIO) -> int:
    file.seek(0, io.SEEK_END)  # of a memory map it says nothing
    return file.tell()
