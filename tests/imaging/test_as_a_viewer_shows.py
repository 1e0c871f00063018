"""Files that an independent viewer shows in one way, and that are easily shown in another."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.contracts.request import FrameSelection, ImageInput
from echovlm_edge.runtime.imaging import video
from echovlm_edge.runtime.imaging.image_file import decode_image
from tests.support.dicom_files import saved, ultrasound
from tests.support.video_files import encoded, moving

GREY = (100 + 20 * np.sin(np.mgrid[:64, :96][1] / 9)).astype(np.uint8)


def shown(data: bytes) -> np.ndarray:
    return decode_image(ImageInput(data))[0].pixels


def transformation(slope: float, intercept: float) -> Dataset:
    group = Dataset()
    group.RescaleSlope, group.RescaleIntercept = slope, intercept
    return group


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_rescale_that_changes_nothing_stretches_nothing(photometric: str) -> None:
    plain = shown(saved(ultrasound(GREY, photometric)))
    stated = saved(ultrasound(GREY, photometric, RescaleSlope=1, RescaleIntercept=0))
    np.testing.assert_array_equal(shown(stated), plain)
    shared = Dataset()
    shared.PixelValueTransformationSequence = [transformation(1, 0)]
    grouped = saved(ultrasound(GREY, photometric, SharedFunctionalGroupsSequence=[shared]))
    np.testing.assert_array_equal(shown(grouped), plain)


def test_signed_bytes_are_shown_in_their_full_range() -> None:
    signed = (GREY.astype(np.int16) - 128).astype(np.int8)
    np.testing.assert_array_equal(
        shown(saved(ultrasound(signed, "MONOCHROME2"))), shown(saved(ultrasound(GREY, "MONOCHROME2")))
    )


SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")


@pytest.mark.parametrize("keyword", SPACINGS)
def test_spacings_that_differ_make_pixels_square(keyword: str) -> None:
    """PS3.3 C.7.6.3.1.7: PixelAspectRatio is not there where a spacing is."""
    (frame,) = decode_image(ImageInput(saved(ultrasound(GREY, "MONOCHROME2", **{keyword: ["0.4", "0.2"]}))))
    assert frame.pixels.shape == (128, 96, 3)
    assert frame.source is not None and any("not square" in note for note in frame.source.notes)
    (same,) = decode_image(ImageInput(saved(ultrasound(GREY, "MONOCHROME2", **{keyword: ["0.2001", "0.2"]}))))
    assert same.pixels.shape == (64, 96, 3), "rounding is no aspect"


def png_with(*chunks: tuple[bytes, bytes], broken: bytes = b"") -> bytes:
    """A PNG of noise with more chunks before its pixels; those named `broken` have a wrong checksum."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(file, "PNG")
    data = file.getvalue()
    more = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ (kind == broken))
        for kind, body in chunks
    )
    end_of_header = 8 + 25
    return data[:end_of_header] + more + data[end_of_header:]


@pytest.mark.parametrize(
    "data",
    [
        png_with((b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2 << 20)))),
        png_with((b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(2 << 20)))),
        png_with((b"iCCP", b"profile\0\0" + zlib.compress(bytes(2 << 20)))),
        png_with((b"gAMA", b"\0")),
        png_with((b"pHYs", b"\0\0")),
        png_with((b"tEXt", b"Comment\0text"), broken=b"tEXt"),
    ],
)
def test_what_a_png_says_besides_its_picture_does_not_matter(data: bytes) -> None:
    np.testing.assert_array_equal(shown(data), shown(png_with()))


def test_a_tiff_palette_of_bytes_is_no_black_picture() -> None:
    """TIFF's colour map has 16 bits; old writers put bytes into it, and libtiff knows it by its largest entry."""
    file = io.BytesIO()
    picture = Image.fromarray(GREY).convert("P")
    picture.putpalette([channel for value in range(256) for channel in (value, 255 - value, value // 2)])
    picture.save(file, "TIFF")
    right, data = shown(file.getvalue()), bytearray(file.getvalue())
    words = np.repeat(np.arange(0), 0)
    with Image.open(io.BytesIO(bytes(data))) as opened:
        words = np.array(opened.tag_v2[320], "<u2")  # type: ignore[attr-defined]
    at = bytes(data).index(words.tobytes())
    data[at : at + words.nbytes] = (words // 256).astype("<u2").tobytes()
    np.testing.assert_array_equal(shown(bytes(data)), right)


HEVC = encoded("hevc stream", moving(12))
WHOLE_HEVC = [pixels for _, pixels in video.decode(io.BytesIO(HEVC), "image 1", range(12), stated=12)]


@given(st.integers(1, len(HEVC) - 1))
def test_a_cut_hevc_stream_shows_no_broken_picture(cut: int) -> None:
    """FFmpeg's decoder fills up a picture whose slices are missing, and says nothing."""
    try:
        frames = decode_image(ImageInput(HEVC[:cut], selection=FrameSelection(evenly_spaced=20)))
    except InvalidInput:
        return
    assert all(any(np.array_equal(frame.pixels, right) for right in WHOLE_HEVC) for frame in frames)
