"""Where frames are in a DICOM file: every way that a file can hold them, or stop holding them."""

from __future__ import annotations

import io
import mmap
import struct
import tempfile
from typing import BinaryIO, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    RLELossless,
)

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.formats.dicom_pixel_data import PixelData, locate
from tests.support.dicom_files import saved, ultrasound

ROWS, COLUMNS = 5, 7  # an odd number of bytes in a frame
FRAME = ROWS * COLUMNS
START, END = b"\xff\xd8\xff\xe0", b"\xff\xd9"


def located(data: bytes) -> PixelData:
    file = io.BytesIO(data)
    return locate(file, dcmread(file, stop_before_pixels=True), "image 1")


def frames_of(pixel_data: PixelData) -> list[bytes]:
    return [pixel_data.read(index) for index in range(pixel_data.count)]


def cine(count: int, syntax: UID = ExplicitVRLittleEndian, **attributes: object) -> tuple[FileDataset, list[bytes]]:
    pixels = np.random.default_rng(count).integers(0, 256, (count, ROWS, COLUMNS), dtype=np.uint8)
    dataset = ultrasound(pixels, "MONOCHROME2", syntax, **{"NumberOfFrames": count, **attributes})
    if len(dataset.PixelData) % 2:
        dataset.PixelData += b"\0"
    return dataset, [frame.tobytes() for frame in pixels]


def encapsulated(items: bytes, stated: int | None, syntax: UID = JPEGBaseline8Bit) -> bytes:
    """A file with these items as its pixel data; `stated` frames."""
    dataset, _ = cine(1, syntax)
    del dataset.NumberOfFrames
    if stated is not None:
        dataset.NumberOfFrames = stated
    dataset.PixelData = items
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return saved(dataset)


def item(data: bytes) -> bytes:
    return b"\xfe\xff\x00\xe0" + struct.pack("<L", len(data)) + data


def codestream(number: int) -> bytes:
    return START + bytes([number]) * (20 + 2 * number) + END


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_native_frames_are_read_from_any_kind_of_file(syntax: UID) -> None:
    dataset, frames = cine(4, syntax)
    data = saved(dataset)
    assert frames_of(located(data)) == frames
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        mapped = cast(BinaryIO, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        for opened in (cast(BinaryIO, file), mapped):
            opened.seek(0)
            found = locate(opened, dcmread(opened, stop_before_pixels=True))
            assert (found.stated, found.count, found.encapsulated) == (4, 4, False)
            assert found.read(2) == frames[2]


def test_the_file_is_not_loaded() -> None:
    dataset, _frames = cine(50)

    class Counting(io.BytesIO):
        read_bytes = 0

        def read(self, size: int | None = -1) -> bytes:
            found = super().read(size)
            self.read_bytes += len(found)
            return found

    dataset.PixelData = bytes(1 << 20)
    dataset.NumberOfFrames = (1 << 20) // FRAME
    file = Counting(saved(dataset))
    locate(file, dcmread(file, stop_before_pixels=True)).read(1000)
    assert file.read_bytes < 4000


@given(st.integers(1, 6), st.integers(0, 6 * FRAME + 1))
def test_an_interrupted_cine_has_its_whole_frames(stated: int, kept: int) -> None:
    dataset, frames = cine(stated)
    whole = saved(dataset)
    at = whole.index(frames[0])
    cut = whole[: min(len(whole), at + max(kept, 1))]
    found = located(cut)
    assert (found.stated, found.count) == (stated, min(stated, (len(cut) - at) // FRAME))
    assert frames_of(found) == frames[: found.count]


@pytest.mark.parametrize("absurd", ["", "0", "-3"])
def test_a_number_of_frames_that_cannot_be_meant_is_one(absurd: str) -> None:
    dataset, frames = cine(2)
    dataset.NumberOfFrames = absurd or None
    found = located(saved(dataset))
    assert (found.stated, frames_of(found)) == (1, frames[:1])


def test_native_data_of_undefined_length() -> None:
    dataset, frames = cine(2, ImplicitVRLittleEndian)
    data = saved(dataset)
    head = data.index(frames[0])
    undefined = data[: head - 4] + b"\xff" * 4 + data[head:]
    for end in (b"", b"\xfe\xff\xdd\xe0\0\0\0\0"):
        assert frames_of(located(undefined + end)) == frames
    in_items = data[: head - 4] + b"\xff" * 4 + item(b"") + item(frames[0]) + item(frames[1])
    assert frames_of(located(in_items)) == frames


def test_frames_of_single_bits_begin_within_bytes() -> None:
    bits = np.random.default_rng(0).integers(0, 2, (3, ROWS, COLUMNS), dtype=np.uint8)
    dataset, _ = cine(3, BitsAllocated=1, BitsStored=1, HighBit=0)
    dataset.PixelData = np.packbits(bits.ravel(), bitorder="little").tobytes()
    for index, frame in enumerate(frames_of(located(saved(dataset)))):
        unpacked = np.unpackbits(np.frombuffer(frame, np.uint8), bitorder="little")[:FRAME]
        np.testing.assert_array_equal(unpacked, bits[index].ravel())


@pytest.mark.parametrize(("bytes_a_pixel", "count"), [(2, 1), (3, 1), (2, 4), (3, 4)])
def test_frames_with_a_422_label_have_the_length_they_have(bytes_a_pixel: int, count: int) -> None:
    length = 4 * 6 * bytes_a_pixel
    dataset = ultrasound(np.zeros((4, 6, 3), np.uint8), "RGB", NumberOfFrames=count)
    dataset.PhotometricInterpretation = "YBR_FULL_422"
    dataset.PixelData = b"".join(bytes([number]) * length for number in range(count))
    assert frames_of(located(saved(dataset))) == [bytes([number]) * length for number in range(count)]


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=5),
    st.sampled_from(["basic", "extended", "none", "zeros", "short"]),
    st.booleans(),
)
def test_frames_are_told_apart_with_and_without_tables(pieces: list[int], table: str, ended: bool) -> None:
    """`pieces`: into how many fragments each codestream is cut."""
    streams = [codestream(number) for number in range(len(pieces))]
    items, offsets, at = b"", [], 0
    for stream, count in zip(streams, pieces, strict=True):
        offsets.append(at)
        size = len(stream) // count // 2 * 2
        cuts = [stream[size * n : size * (n + 1) if n < count - 1 else None] for n in range(count)]
        items += b"".join(map(item, cuts))
        at = len(items)
    tables = {"basic": offsets, "zeros": [0] * len(offsets), "short": offsets[:1]}
    if table == "short" and len(offsets) > 1 and sum(pieces) != len(pieces):
        table = "none"  # a table that is wrong and cannot be known to be
    first = item(struct.pack(f"<{len(offsets)}L", *offsets) if table in ("basic",) else b"")
    if table in ("zeros", "short"):
        first = item(struct.pack(f"<{len(tables[table])}L", *tables[table]))
    data = encapsulated(first + items, len(pieces))
    if table == "extended":
        dataset = dcmread(io.BytesIO(data))
        dataset.ExtendedOffsetTable = struct.pack(f"<{len(offsets)}Q", *offsets)
        dataset.ExtendedOffsetTableLengths = struct.pack(f"<{len(offsets)}Q", *map(len, streams))
        data = saved(dataset)
    if not ended:
        data = data[:-8]  # without the delimiter
    found = located(data)
    assert found.encapsulated and frames_of(found) == streams
    assert found.stream() == b"".join(streams)


def test_a_codestream_that_is_cut_off_is_no_frame() -> None:
    streams = [codestream(number) for number in range(5)]
    for items in (encapsulate(streams), encapsulate(streams, has_bot=False), encapsulate_extended(streams)[0]):
        whole = encapsulated(items, 5)
        cut = whole[: whole.index(streams[3]) + 6]
        found = located(cut)
        assert (found.stated, frames_of(found)) == (5, streams[:3])
    dozen = encapsulated(encapsulate(streams), 12)
    assert (located(dozen).stated, located(dozen).count) == (12, 5)


def test_runs_without_a_table_are_a_fragment_each() -> None:
    runs = [bytes((1, 0, 0, 0, 64)) + bytes(59) + bytes([number] * 10) for number in range(3)]
    assert frames_of(located(encapsulated(encapsulate(runs, has_bot=False), 7, RLELossless))) == runs


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (encapsulated(item(b""), 1), "pixel data is empty"),
        (saved(ultrasound(np.zeros((0, 0), np.uint8), "MONOCHROME2", Rows=8, Columns=8)), "pixel data is empty"),
        (saved(cine(1)[0])[:300], "without an image"),
    ],
)
def test_a_file_without_pixels_is_refused(data: bytes, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=f"image 1 .*{sentence}"):
        located(data)


def test_pieces_without_number_are_refused() -> None:
    with pytest.raises(InvalidInput, match="pieces"):
        located(encapsulated(item(b"ab") * 300_000, 2))
