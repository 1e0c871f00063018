"""Cut cines: a file cut to its chosen frames is the same picture, with the same numbers, as the whole one."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import (
    MPEG2MPML,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from echovlm_edge.runtime.client.cine_cutting import cut_cine
from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.contracts.image_path import ImagePath
from echovlm_edge.runtime.contracts.request import FrameSelection, ImageInput, OriginalFrames
from echovlm_edge.runtime.imaging.image_file import decode_image
from tests.support.dicom_files import encode, region, saved, shipped, ultrasound

NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)
CODED = (JPEGBaseline8Bit, JPEG2000Lossless, RLELossless)
MIDDLE = FrameSelection()


def noise(frames: int, height: int = 30, width: int = 31, colour: bool = False, dtype: Any = np.uint8) -> NDArray[Any]:
    shape = (frames, height, width, 3) if colour else (frames, height, width)
    return np.random.default_rng(frames).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def cine(pixels: NDArray[Any], syntax: UID = ExplicitVRLittleEndian, **attributes: object) -> FileDataset:
    photometric = "RGB" if pixels.ndim == 4 else "MONOCHROME2"
    stated = {"NumberOfFrames": len(pixels), "PatientID": "P1", "StudyInstanceUID": "1.2.3", **attributes}
    dataset = ultrasound(pixels, photometric, syntax, **stated)
    if pixels.nbytes % 2:
        dataset.PixelData += b"\0"
    return dataset


def coded(
    pixels: NDArray[Any], syntax: UID, extended: bool = False, pieces: int = 1, **attributes: object
) -> FileDataset:
    """Make the same cine with each frame as a codestream, in so many fragments."""
    if syntax == RLELossless:
        plain = cine(pixels, **attributes)
        plain.compress(RLELossless)
        return plain
    dataset = cine(pixels, syntax, **attributes)
    kind = "JPEG" if syntax == JPEGBaseline8Bit else "JPEG2000"
    frames = [encode(Image.fromarray(frame), kind) for frame in pixels]
    if kind == "JPEG" and pixels.ndim == 4:
        dataset.PhotometricInterpretation = "YBR_FULL_422"
    if extended:
        dataset.PixelData, dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = encapsulate_extended(
            frames
        )
    else:
        dataset.PixelData = encapsulate(frames, fragments_per_frame=pieces)
    dataset["PixelData"].VR = "OB"
    return dataset


def as_image(dataset: FileDataset, selection: FrameSelection = MIDDLE) -> ImageInput:
    return ImageInput(saved(dataset), name="cine.dcm", selection=selection)


def shown(image: ImageInput) -> list[Any]:
    return [(frame.pixels.tobytes(), frame.pixels.shape, frame.name, frame.source) for frame in decode_image(image)]


def assert_cut(image: ImageInput) -> ImageInput:
    """The same pictures either way, and a file that needs no more than its frames."""
    cut = cut_cine(image)
    assert cut is not None and cut.original is not None and isinstance(cut.data, bytes)
    assert shown(cut) == shown(image)
    assert pydicom.dcmread(io.BytesIO(cut.data)).NumberOfFrames == len(cut.original.numbers)
    assert len(cut.data) < len(image.data)
    return cut


def shown_or_refused(image: ImageInput) -> object:
    try:
        return shown(image)
    except (InvalidInput, NotPossibleHere) as error:
        return str(error)


def with_window(center: float) -> Dataset:
    """One frame's functional groups: a window of its own."""
    group, window = Dataset(), Dataset()
    window.WindowCenter, window.WindowWidth = center, 100
    group.FrameVOILUTSequence = [window]
    return group


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_the_same_pictures_and_numbers_cut_or_whole(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 9), "frames")
    syntax = data.draw(st.sampled_from(NATIVE + CODED), "syntax")
    colour = data.draw(st.booleans(), "colour")
    wide = syntax in NATIVE and not colour and data.draw(st.booleans(), "16 bits")
    size = data.draw(st.tuples(st.integers(28, 33), st.integers(28, 33)), "size")
    indices = data.draw(st.lists(st.integers(0, count - 1), max_size=count - 1), "indices")
    spaced = data.draw(st.integers(0, count - 1), "spaced")
    attributes: dict[str, object] = {}
    if data.draw(st.booleans(), "representative"):
        attributes["RepresentativeFrameNumber"] = data.draw(st.integers(1, count), "representative frame")
    if data.draw(st.booleans(), "region"):
        attributes["SequenceOfUltrasoundRegions"] = [region(0, 0, 27, 26)]
    if data.draw(st.booleans(), "functional groups"):
        attributes["PerFrameFunctionalGroupsSequence"] = [with_window(50.0 * number) for number in range(count)]
    pixels = noise(count, *size, colour, np.uint16 if wide else np.uint8)
    if syntax in CODED:
        pieces = data.draw(st.integers(1, 3), "fragments")
        dataset = coded(pixels, syntax, data.draw(st.booleans(), "extended"), pieces, **attributes)
    else:
        dataset = cine(pixels, syntax, **attributes)
        if data.draw(st.booleans(), "in words"):  # in big endian, bytes change places
            dataset["PixelData"].VR = "OW"
    assert_cut(as_image(dataset, FrameSelection(tuple(indices), spaced)))


HEADERS = [
    saved(dataset)
    for dataset in (
        cine(noise(6), WindowCenter=100, WindowWidth=50, SequenceOfUltrasoundRegions=[region(0, 0, 29, 29)]),
        cine(noise(6), ImplicitVRLittleEndian, PerFrameFunctionalGroupsSequence=[with_window(50)] * 6),
        cine(noise(6), ExplicitVRBigEndian),
        coded(noise(6), JPEGBaseline8Bit),
        coded(noise(6), JPEG2000Lossless, extended=True),
    )
]


@settings(deadline=None, max_examples=300, derandomize=True)
@given(
    st.sampled_from(HEADERS),
    st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), min_size=1, max_size=3),
    st.sampled_from([MIDDLE, FrameSelection((3, 1)), FrameSelection((), 2)]),
)
def test_damage_is_shown_or_refused_alike(
    file: bytes, damage: list[tuple[int, int]], selection: FrameSelection
) -> None:
    damaged = bytearray(file)
    for place, value in damage:
        damaged[place] = value
    image = ImageInput(bytes(damaged), name="cine.dcm", selection=selection)
    try:
        cut = cut_cine(image)
    except InvalidInput as error:
        assert str(error).startswith("cine.dcm has no frame")
        return
    if cut:
        assert shown_or_refused(cut) == shown_or_refused(image)


def test_a_dark_frame_keeps_its_own_range() -> None:
    pixels = (noise(5, dtype=np.uint16) >> 8) << np.arange(5, dtype=np.uint16)[:, None, None]
    for selection in (FrameSelection((0,)), FrameSelection((4, 1)), FrameSelection((), 3)):
        assert_cut(as_image(cine(pixels, BitsStored=12, HighBit=11), selection))


def test_what_the_header_says_of_frames_is_of_those_that_are_sent() -> None:
    groups = [Dataset() for _ in range(6)]
    for number, group in enumerate(groups):
        group.FrameAcquisitionNumber = number
    dataset = cine(noise(6), PerFrameFunctionalGroupsSequence=groups, FrameTimeVector=[1.0] * 6)
    dataset.RepresentativeFrameNumber, dataset.StartTrim, dataset.StopTrim = 2, 1, 3
    dataset.WindowCenter, dataset.WindowWidth, dataset.PatientName = 100, 50, "SECRET^PATIENT"
    block = dataset.private_block(0x0099, "A VENDOR", create=True)
    block.add_new(1, "OB", bytes(1 << 20))
    cut = cut_cine(as_image(dataset, FrameSelection((5, 0))))
    assert cut and cut.original == OriginalFrames((5, 0), 6) and isinstance(cut.data, bytes)
    read = pydicom.dcmread(io.BytesIO(cut.data))
    assert [group.FrameAcquisitionNumber for group in read.PerFrameFunctionalGroupsSequence] == [5, 0]
    gone = "RepresentativeFrameNumber", "StartTrim", "StopTrim", "FrameTimeVector"
    assert not [keyword for keyword in gone if keyword in read]
    assert (read.WindowCenter, read.PatientID, read.StudyInstanceUID) == (100, "P1", "1.2.3")
    assert not any(element.tag.is_private for element in read) and len(cut.data) < 10_000


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("tag", [0x00991001, 0x60003000, 0x00420011])
def test_what_is_long_and_no_picture_is_neither_read_nor_sent(
    tag: int, on_disk: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("echovlm_edge.runtime.client.cine_cutting.LONGEST_ELEMENT", 5000)
    dataset = cine(noise(6))
    dataset.add_new(tag, "OB", bytes(6000))
    (tmp_path / "cine.dcm").write_bytes(saved(dataset))
    cut = cut_cine(ImagePath(tmp_path / "cine.dcm", name="cine.dcm") if on_disk else as_image(dataset))
    assert cut and isinstance(cut.data, bytes) and len(cut.data) < 2500
    assert shown(cut) == shown(as_image(dataset))


def test_functional_groups_that_are_too_long_to_read_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = cine(noise(6), PerFrameFunctionalGroupsSequence=[Dataset() for _ in range(6)])
    assert cut_cine(as_image(dataset))
    monkeypatch.setattr("echovlm_edge.runtime.client.cine_cutting.LONGEST_ELEMENT", 40)
    assert cut_cine(as_image(dataset)) is None


@pytest.mark.parametrize(
    ("header", "chosen"),
    [({"RepresentativeFrameNumber": 2}, 1), ({"StartTrim": 1, "StopTrim": 3}, 1), ({"StartTrim": 9}, 4), ({}, 4)],
)
def test_the_frame_is_the_one_that_the_file_recommends(header: dict[str, int], chosen: int) -> None:
    cut = cut_cine(as_image(cine(noise(8), **header)))
    assert cut and cut.original == OriginalFrames((chosen,), 8)


def test_an_extended_offset_table_does_not_outlive_its_file() -> None:
    cut = assert_cut(as_image(coded(noise(6), JPEGBaseline8Bit, extended=True)))
    assert isinstance(cut.data, bytes) and "ExtendedOffsetTable" not in pydicom.dcmread(io.BytesIO(cut.data))


def test_absurd_values_stay_for_the_server_to_judge() -> None:
    dataset = cine(noise(4), WindowCenter="", WindowWidth="0", RescaleSlope=None)
    data = saved(dataset).replace(b"WW\x02\x000 ", b"WW\x02\x00?!")
    cut = cut_cine(ImageInput(data))
    assert cut and isinstance(cut.data, bytes)
    whole, kept = (pydicom.dcmread(io.BytesIO(file)) for file in (data, cut.data))
    for tag in set(whole.keys()) - {0x00280008, 0x7FE00010}:
        assert whole.get_item(tag).value == kept.get_item(tag).value


def deflated() -> bytes:
    return saved(cine(noise(4), DeflatedExplicitVRLittleEndian))


def video() -> bytes:
    dataset = cine(noise(4), MPEG2MPML)
    dataset.PixelData = encapsulate([b"\0\0\1\xb3" + bytes(99)])
    return saved(dataset)


def interrupted() -> bytes:
    dataset = cine(noise(4))
    dataset.NumberOfFrames = 9
    return saved(dataset)


@pytest.mark.parametrize(
    "data",
    [
        saved(ultrasound(noise(1)[0], "MONOCHROME2")),
        deflated(),
        video(),
        interrupted(),
        b"text",
        b"",
        bytes(128) + b"DICM\xff\xff",
        saved(cine(noise(4), PerFrameFunctionalGroupsSequence=[Dataset()] * 3)),
        encode(Image.new("RGB", (8, 8))),
    ],
    ids=["one frame", "deflated", "video", "interrupted", "text", "empty", "damaged", "fewer groups", "png"],
)
def test_what_is_sent_as_it_is(data: bytes) -> None:
    assert cut_cine(ImageInput(data)) is None


def test_all_frames_are_sent_as_they_are() -> None:
    assert cut_cine(as_image(cine(noise(4)), FrameSelection((), 9))) is None


def test_without_pydicom_it_is_sent_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert cut_cine(as_image(cine(noise(4)))) is None


def test_a_frame_that_is_not_there_is_named_before_anything_is_sent() -> None:
    with pytest.raises(InvalidInput, match=r"^cine\.dcm has no frame 4: it has 4, counted from 0"):
        cut_cine(as_image(cine(noise(4)), FrameSelection((4,))))


class Counting(io.FileIO):
    """Counts what is read of a file."""

    read_bytes = 0

    def read(self, size: int | None = -1) -> bytes:  # type: ignore[override]
        found = super().read(-1 if size is None else size) or b""
        Counting.read_bytes += len(found)
        return found


@pytest.mark.parametrize(
    "name",
    ["examples_ybr_color.dcm", "rtdose_rle.dcm", "rtdose_expb.dcm", "SC_rgb_rle_16bit_2frame.dcm"],
)
def test_files_of_other_makers(name: str) -> None:
    assert_cut(ImageInput(shipped(name), name="cine.dcm", selection=FrameSelection((1,))))


@pytest.mark.parametrize("make", [cine, lambda pixels: coded(pixels, JPEGBaseline8Bit)], ids=["native", "coded"])
def test_other_frames_are_not_read(
    make: Callable[[NDArray[Any]], FileDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cine.dcm"
    path.write_bytes(saved(make(noise(200, 64, 64))))
    monkeypatch.setattr(Counting, "read_bytes", 0)
    monkeypatch.setattr(ImagePath, "open", lambda image: Counting(image.path))
    assert cut_cine(ImagePath(path))
    assert Counting.read_bytes < 20_000 < path.stat().st_size / 10
