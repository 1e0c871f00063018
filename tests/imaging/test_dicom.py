"""DICOM: every photometric interpretation and encoding to the RGB that a viewer shows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.pixels import convert_color_space
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.contracts.request import FrameSelection, ImageInput
from echovlm_edge.runtime.formats.dicom_frames import choose_frames
from echovlm_edge.runtime.formats.dicom_pixel_format import PixelFormat
from echovlm_edge.runtime.imaging.dicom import still_frames
from echovlm_edge.runtime.imaging.dicom.frame_decoder import Samples
from echovlm_edge.runtime.imaging.image_file import Frame, ImageLimits, decode_image
from tests.support.dicom_files import saved, shipped, ultrasound

HEIGHT, WIDTH = 28, 36
GRAY = (np.arange(HEIGHT * WIDTH) % 128 * 2).astype(np.uint8).reshape(HEIGHT, WIDTH)
COLOUR = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def frames(data: bytes, **fields: object) -> list[Frame]:
    return decode_image(ImageInput(data, **fields))  # type: ignore[arg-type]


def pixels(data: bytes, **fields: object) -> np.ndarray:
    (frame,) = frames(data, **fields)
    return frame.pixels


def as_rgb(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., None], 3, axis=2)


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
def test_uncompressed_encodings(syntax: UID) -> None:
    np.testing.assert_array_equal(pixels(saved(ultrasound(COLOUR, syntax=syntax))), COLOUR)
    deep = GRAY.astype(np.uint16) * 100
    expected = as_rgb(np.rint((deep - deep.min()) / np.ptp(deep) * 255).astype(np.uint8))
    np.testing.assert_array_equal(pixels(saved(ultrasound(deep, "MONOCHROME2", syntax))), expected)


@pytest.mark.parametrize("kind", ["RLE", "jp2klossless", "jpeg_ls_lossless", "implicit", "bigendian", "expb"])
def test_lossless_encodings_of_one_real_image_agree(kind: str) -> None:
    np.testing.assert_array_equal(pixels(shipped(f"MR_small_{kind}.dcm")), pixels(shipped("MR_small.dcm")))


def test_photometric_interpretations() -> None:
    np.testing.assert_array_equal(pixels(saved(ultrasound(GRAY, "MONOCHROME2"))), as_rgb(GRAY))
    np.testing.assert_array_equal(pixels(saved(ultrasound(GRAY, "MONOCHROME1"))), as_rgb(255 - GRAY))
    ybr = convert_color_space(COLOUR, "RGB", "YBR_FULL")
    np.testing.assert_allclose(pixels(saved(ultrasound(ybr, "YBR_FULL"))).astype(int), COLOUR.astype(int), atol=2)
    planes = np.ascontiguousarray(COLOUR.transpose(2, 0, 1)).reshape(COLOUR.shape)
    np.testing.assert_array_equal(pixels(saved(ultrasound(planes, "RGB", PlanarConfiguration=1))), COLOUR)


def test_palette() -> None:
    tables = {
        f"{colour}PaletteColorLookupTable{part}": value
        for colour, shift in (("Red", 0), ("Green", 1), ("Blue", 2))
        for part, value in (
            ("Descriptor", [256, 0, 16]),
            ("Data", (((np.arange(256) * (shift + 1)) % 256) << 8).astype("<u2").tobytes()),
        )
    }
    shown = pixels(saved(ultrasound(GRAY, "PALETTE COLOR", **tables)))
    np.testing.assert_array_equal(shown, np.stack([(GRAY.astype(int) * k) % 256 for k in (1, 2, 3)], axis=-1))


def test_windowing() -> None:
    values = np.arange(HEIGHT * WIDTH, dtype=np.int16).reshape(HEIGHT, WIDTH) - 200
    shown = pixels(saved(ultrasound(values, "MONOCHROME2", WindowCenter=100, WindowWidth=201)))[..., 0]
    assert (shown[values < 0] == 0).all() and (shown[values >= 200] == 255).all()
    middle = shown[(values > 0) & (values < 200)].astype(int)
    assert (np.diff(middle) > 0).all(), "the window's inside is a rising ramp"
    rescaled = ultrasound(
        values, "MONOCHROME2", WindowCenter=50, WindowWidth=101, RescaleSlope="0.5", RescaleIntercept="0"
    )
    np.testing.assert_allclose(pixels(saved(rescaled))[..., 0].astype(int), shown.astype(int), atol=2)


def test_a_cine_gives_the_frames_asked_for() -> None:
    cine = np.stack([np.full((HEIGHT, WIDTH), 20 * index, np.uint8) for index in range(10)])
    data = saved(ultrasound(cine, "MONOCHROME2", NumberOfFrames=10))

    def levels(selection: FrameSelection) -> list[int]:
        return [int(frame.pixels[0, 0, 0]) // 20 for frame in frames(data, selection=selection)]

    assert levels(FrameSelection()) == [5]
    assert levels(FrameSelection(indices=(9, 0, 3))) == [9, 0, 3]
    assert levels(FrameSelection(evenly_spaced=4)) == [0, 3, 6, 9]
    assert levels(FrameSelection(evenly_spaced=50)) == list(range(10))
    with pytest.raises(InvalidInput, match="no frame 10: it has 10"):
        levels(FrameSelection(indices=(10,)))


def test_only_the_frames_asked_for_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []
    real = still_frames.decode_frame

    def spy(name: str, data: bytes, pixels: PixelFormat, syntax: UID) -> Samples:
        decoded.append(data)
        return real(name, data, pixels, syntax)

    monkeypatch.setattr(still_frames, "decode_frame", spy)
    frames(shipped("examples_ybr_color.dcm"), selection=FrameSelection(indices=(3, 29)))
    assert len(decoded) == 2


@given(st.integers(1, 500), st.integers(1, 64))
def test_evenly_spaced_frames_span_the_cine(count: int, wanted: int) -> None:
    chosen = choose_frames("image 1", count, FrameSelection(evenly_spaced=wanted), 64)
    assert len(chosen) == min(count, wanted) == len(set(chosen)) and chosen == sorted(chosen)
    assert all(0 <= index < count for index in chosen)
    if wanted > 1:
        assert chosen[0] == 0 and chosen[-1] == count - 1


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("examples_rgb_color.dcm", (240, 320, 3)),
        ("examples_palette.dcm", None),
        ("examples_ybr_color.dcm", None),
        ("examples_jpeg2k.dcm", (480, 640, 3)),
        ("ExplVR_BigEnd.dcm", (60, 80, 3)),
        ("MR_small_RLE.dcm", (64, 64, 3)),
        ("MR_small_jpeg_ls_lossless.dcm", (64, 64, 3)),
        ("SC_rgb_jpeg_dcmtk.dcm", (100, 100, 3)),
    ],
)
def test_real_files(name: str, shape: tuple[int, ...] | None, capfd: pytest.CaptureFixture[str]) -> None:
    shown = pixels(shipped(name))
    assert shown.dtype == np.uint8 and shown.std() > 5
    assert shape is None or shown.shape == shape
    assert capfd.readouterr().err == "", "pydicom's own warnings stay out of the log"


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "garbage": (lambda: b"\0" * 128 + b"DICM" + b"\xff" * 200, "cannot be read as DICOM|without an image"),
    "no pixels": (lambda: shipped("rtplan.dcm"), "without an image"),
    "empty pixels": (
        lambda: saved(ultrasound(GRAY[:0], "MONOCHROME2", Rows=HEIGHT, Columns=WIDTH)),
        "pixel data is empty",
    ),
    "short pixels": (
        lambda: saved(ultrasound(GRAY[:3], "MONOCHROME2", Rows=HEIGHT, Columns=WIDTH)),
        "cannot be decoded",
    ),
    "huge": (lambda: saved(ultrasound(GRAY, "MONOCHROME2", Rows=40_000, Columns=40_000)), "40,000 x 40,000"),
    "photometric": (lambda: saved(ultrasound(GRAY, "HSV")), "photometric interpretation HSV"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_get_one_clear_sentence(kind: str) -> None:
    make, sentence = BROKEN[kind]
    with pytest.raises(InvalidInput, match=sentence) as refused:
        frames(make())
    assert "SECRET" not in str(refused.value) and "\n" not in str(refused.value)


def test_more_frames_than_allowed_are_refused_before_decoding() -> None:
    data = saved(ultrasound(np.zeros((5, HEIGHT, WIDTH), np.uint8), "MONOCHROME2", NumberOfFrames=5))
    with pytest.raises(InvalidInput, match="at most 3"):
        decode_image(ImageInput(data, selection=FrameSelection(evenly_spaced=5)), ImageLimits(max_frames=3))
