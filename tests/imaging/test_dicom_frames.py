"""Which frames of a DICOM cine are read, and what part of them is shown."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import FileDataset

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.contracts.request import Box, FrameSelection, ImageInput, OriginalFrames, Source
from echovlm_edge.runtime.formats.dicom_first_bytes import looks_like_dicom
from echovlm_edge.runtime.imaging.dicom.reading import decode, read_header
from tests.support.dicom_files import region, saved, shipped, ultrasound

LIMITS = 64_000_000, 64
HEIGHT, WIDTH = 60, 80


def cine(count: int = 10, **attributes: object) -> FileDataset:
    """A cine whose frames are grey, 20 levels a frame."""
    frames = np.stack([np.full((HEIGHT, WIDTH), 20 * number, np.uint8) for number in range(count)])
    return ultrasound(frames, "MONOCHROME2", **{"NumberOfFrames": count, **attributes})


def shown(data: bytes, **fields: object) -> list[tuple[int, Source]]:
    """The number that each frame shows, and where it says that it comes from. What was measured agrees."""
    image = ImageInput(data, **fields)  # type: ignore[arg-type]
    found = decode(image, *LIMITS)
    header = read_header(image, *LIMITS)
    assert [source.index for _, source in found] == list(header.frames)
    assert all(pixels.shape == (header.height, header.width, 3) for pixels, _ in found)
    return [(int(pixels[0, 0, 0]) // 20, source) for pixels, source in found]


def numbers(dataset: FileDataset, **fields: object) -> list[int]:
    return [number for number, _ in shown(saved(dataset), **fields)]


@pytest.mark.parametrize(
    ("attributes", "default", "spread"),
    [
        ({}, 5, [0, 4, 9]),
        ({"RepresentativeFrameNumber": 3}, 2, [0, 4, 9]),
        ({"RepresentativeFrameNumber": 11}, 5, [0, 4, 9]),
        ({"RepresentativeFrameNumber": 0}, 5, [0, 4, 9]),
        ({"StartTrim": 3, "StopTrim": 6}, 4, [2, 4, 5]),
        ({"StartTrim": 3, "StopTrim": 6, "RepresentativeFrameNumber": 1}, 0, [2, 4, 5]),
        ({"StartTrim": 5}, 7, [4, 6, 9]),
        ({"StopTrim": 5}, 2, [0, 2, 4]),
        ({"StartTrim": 6, "StopTrim": 3}, 5, [0, 4, 9]),
        ({"StartTrim": 1, "StopTrim": 99}, 5, [0, 4, 9]),
        ({"StartTrim": -1, "StopTrim": 4}, 5, [0, 4, 9]),
        ({"StartTrim": 7, "StopTrim": 7}, 6, [6]),
        ({"StartTrim": None, "StopTrim": None, "RepresentativeFrameNumber": None}, 5, [0, 4, 9]),
    ],
)
def test_the_frame_that_the_file_means(attributes: dict[str, int], default: int, spread: list[int]) -> None:
    dataset = cine(**attributes)
    assert numbers(dataset) == [default] == numbers(dataset, selection=FrameSelection(evenly_spaced=1))
    assert numbers(dataset, selection=FrameSelection(evenly_spaced=3)) == spread
    assert numbers(dataset, selection=FrameSelection(indices=(9, 0))) == [9, 0]


@given(st.integers(1, 9), st.integers(0, 12), st.integers(-1, 12), st.integers(-1, 12), st.integers(0, 12))
def test_an_interrupted_cine_gives_the_frames_it_has(
    there: int, representative: int, start: int, stop: int, spaced: int
) -> None:
    dataset = cine(StartTrim=start, StopTrim=stop, RepresentativeFrameNumber=representative)
    data = saved(dataset)[: -HEIGHT * WIDTH * (10 - there)]
    for number, source in shown(data, selection=FrameSelection(evenly_spaced=spaced)):
        assert number == source.index < there and source.count == 10
        assert source.notes == (f"{there} of 10 frames are there.",)
    with pytest.raises(InvalidInput, match=f"no frame {there}: it has {there} of the 10"):
        shown(data, selection=FrameSelection(indices=(there,)))


def test_a_file_that_was_shortened_gives_all_its_frames() -> None:
    data = saved(cine(3, RepresentativeFrameNumber=1))
    original = OriginalFrames((4, 7, 8), 20)
    assert [number for number, _ in shown(data, original=original)] == [0, 1, 2]
    with pytest.raises(InvalidInput, match="shortened to 2 frames, and has 3"):
        shown(data, original=OriginalFrames((4, 7), 20))
    with pytest.raises(InvalidInput, match="at most 2"):
        decode(ImageInput(data, original=original), 64_000_000, 2)


COLOUR = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
WHOLE = Box(0, 0, WIDTH, HEIGHT)


def lacking(edge: str) -> object:
    item = region(2, 1, 69, 56)
    setattr(item, f"RegionLocation{edge}", None)
    return item


@pytest.mark.parametrize(
    ("regions", "box", "noted"),
    [
        ([region(2, 1, 69, 56), region(0, 57, 79, 59, data_type=3)], Box(2, 1, 70, 57), False),
        ([region(0, 1, 30, 56), region(50, 1, 999, 50)], Box(0, 1, WIDTH, 57), False),
        ([region(90, 90, 99, 99)], WHOLE, False),
        ([region(69, 56, 2, 1)], WHOLE, False),
        ([region(5, 5, 5, 5)], WHOLE, True),
        ([region(5, 5, 31, 55)], WHOLE, True),
        ([region(5, 5, 32, 55)], Box(5, 5, 33, 56), False),
        ([region(5, 5, 32, 55), region(70, 9, 2, 1), region(200, 1, 300, 20)], Box(5, 5, 33, 56), False),
        ([region(0, 0, 0xFFFFFFFF, 0xFFFFFFFF)], WHOLE, False),
        ([lacking("MinX0")], WHOLE, False),
        ([lacking("MaxY1"), region(2, 1, 69, 56)], Box(2, 1, 70, 57), False),
        ([], WHOLE, False),
    ],
)
def test_the_b_mode_region_is_cut_out(regions: list[object], box: Box, noted: bool) -> None:
    image = ImageInput(saved(ultrasound(COLOUR, SequenceOfUltrasoundRegions=regions)))
    ((pixels, source),) = decode(image, *LIMITS)
    np.testing.assert_array_equal(pixels, COLOUR[box.top : box.bottom, box.left : box.right])
    assert source.box == box and bool(source.notes) == noted
    ((pixels, source),) = decode(ImageInput(image.data, crop_to_regions=False), *LIMITS)
    np.testing.assert_array_equal(pixels, COLOUR)


@pytest.mark.parametrize(
    ("ratio", "size"),
    [
        ([2, 1], (120, 80)),
        ([1, 2], (60, 160)),
        ([3, 2], (90, 80)),
        ([7, 7], (60, 80)),
        ([0, 1], (60, 80)),
        ([-2, 1], (60, 80)),
        ([1, 1000], (60, 80)),
        (None, (60, 80)),
    ],
)
def test_pixels_become_square(ratio: list[int] | None, size: tuple[int, int]) -> None:
    data = saved(ultrasound(COLOUR, PixelAspectRatio=ratio, SequenceOfUltrasoundRegions=[region(0, 0, 79, 59)]))
    ((pixels, source),) = decode(ImageInput(data), *LIMITS)
    assert pixels.shape == (*size, 3)
    assert (source.height, source.width, source.box) == (HEIGHT, WIDTH, WHOLE)
    assert bool(source.notes) == (size != (60, 80))
    header = read_header(ImageInput(data), *LIMITS)
    assert (header.height, header.width) == size
    ((pixels, _),) = decode(ImageInput(data), HEIGHT * WIDTH, 1)
    assert pixels.shape[0] * pixels.shape[1] <= HEIGHT * WIDTH, "no more pixels than are allowed"


@pytest.mark.parametrize(
    "name", ["MR_small_implicit.dcm", "MR_small_expb.dcm", "MR_small_bigendian.dcm", "MR_small.dcm"]
)
def test_dicom_is_known_by_its_first_bytes(name: str) -> None:
    data = shipped(name)
    assert looks_like_dicom(data[:144])
    bare = data[132:]
    assert looks_like_dicom(bare[:144]), "meta information without preamble"
    start = 12 + int.from_bytes(bare[8:12], "little")
    if name not in ("MR_small_bigendian.dcm", "MR_small_expb.dcm"):
        assert looks_like_dicom(bare[start : start + 144]), "a data set alone"
        np.testing.assert_array_equal(
            decode(ImageInput(bare[start:]), *LIMITS)[0][0], decode(ImageInput(data), *LIMITS)[0][0]
        )


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\x08\0",
        b"\x89PNG\r\n\x1a\n" + bytes(140),
        b"\xff\xd8\xff\xe0" + bytes(140),
        bytes(144),
        b"BM" + bytes(142),
    ],
)
def test_other_files_are_not_taken_for_dicom(head: bytes) -> None:
    assert not looks_like_dicom(head)


@given(st.binary(max_size=160))
def test_any_head_can_be_asked_about(head: bytes) -> None:
    assert looks_like_dicom(head) in (True, False)
