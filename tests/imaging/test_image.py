"""Pictures: what is decoded, and what is refused before it is."""

from __future__ import annotations

import io
import json
import struct
import zlib
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.contracts.request import FrameSelection, ImageInput, OriginalFrames, Resolution
from echovlm_edge.runtime.imaging.decoder import LocalDecoder
from echovlm_edge.runtime.imaging.image_file import decode_image, measure_image
from echovlm_edge.runtime.imaging.preprocess import PreprocessSettings, cut, fit, most_pixels, patchify, smart_resize
from tests.support import golden
from tests.support.dicom_files import encode, png, region, saved, shipped, ultrasound


def pixels(data: bytes, **fields: object) -> np.ndarray:
    (frame,) = decode_image(ImageInput(data, **fields))  # type: ignore[arg-type]
    return frame.pixels


def header_only_png(width: int, height: int) -> bytes:
    """A PNG that says it is huge and holds nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_every_mode_becomes_rgb() -> None:
    gray = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    expected = np.repeat(gray[..., None], 3, axis=2)
    picture = Image.fromarray(gray)
    deep = Image.fromarray(gray.astype(np.uint16) << 8)
    transparent = Image.merge("LA", (picture, Image.new("L", (8, 8), 255)))
    for made in (picture, picture.convert("RGB"), picture.convert("P"), deep, transparent):
        np.testing.assert_array_equal(pixels(encode(made)), expected)
    hidden = Image.merge("LA", (picture, Image.new("L", (8, 8), 0)))
    assert not pixels(encode(hidden)).any(), "what is transparent is shown on black"


def test_a_camera_turned_picture_is_turned_back() -> None:
    picture = Image.new("RGB", (20, 10), "red")
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter turn
    picture.save(buffer, "JPEG", exif=exif)
    assert pixels(buffer.getvalue()).shape == (20, 10, 3)


@pytest.mark.parametrize(
    ("data", "fields", "sentence"),
    [
        (b"", {}, "image 1 is empty"),
        (b"Dear colleague, thank you for referring", {}, "is of no known kind: send a DICOM, PNG"),
        (b"Dear colleague", {"media_type": "image/png"}, "is of no known kind: send a DICOM, PNG"),
        (png(8, 8), {"media_type": "image/jpeg"}, "sent as image/jpeg but is image/png"),
        (png(8, 8), {"media_type": "video/mp4"}, "sent as video/mp4 but is image/png"),
        (png(8, 8), {"media_type": "image/x-xcf"}, "media type image/x-xcf"),
        (png(8, 8)[:-40], {}, "truncated or damaged"),
        (encode(Image.new("RGB", (64, 64)), "JPEG")[:200], {}, "truncated or damaged"),
        (header_only_png(40_000, 40_000), {}, "more than 64,000,000 pixels"),
        (header_only_png(10_000, 10_000), {}, "10,000 x 10,000 pixels"),
        (png(8, 8), {"selection": FrameSelection(indices=(3,))}, "one frame"),
    ],
    ids=[
        "empty",
        "text",
        "text-as-png",
        "wrong-type",
        "video",
        "unknown-type",
        "cut-png",
        "cut-jpeg",
        "huge",
        "large",
        "frame",
    ],
)
def test_bad_pictures_get_one_clear_sentence(data: bytes, fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence) as refused:
        pixels(data, **fields)
    assert str(refused.value).startswith("image 1") and "\n" not in str(refused.value)


@given(st.binary(max_size=300), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\0" * 128 + b"DICM"]))
def test_any_bytes_are_decoded_or_refused(tail: bytes, start: bytes) -> None:
    try:
        frames = decode_image(ImageInput(start + tail))
        assert all(frame.pixels.ndim == 3 for frame in frames)
    except InvalidInput:
        pass


@pytest.mark.parametrize("fraction", [0.1, 0.4, 0.7, 0.95])
@pytest.mark.parametrize("name", ["examples_jpeg2k.dcm", "examples_ybr_color.dcm", "examples_rgb_color.dcm"])
def test_a_truncated_dicom_is_decoded_or_refused(name: str, fraction: float) -> None:
    data = shipped(name)
    try:
        decode_image(ImageInput(data[: int(len(data) * fraction)]))
    except InvalidInput as refused:
        assert "image 1" in str(refused)


def test_patches_are_the_authors() -> None:
    settings = PreprocessSettings.from_config(json.loads((golden.CHECKPOINT / "preprocessor_config.json").read_text()))
    for name in golden.CASES:
        case = golden.load(name)
        for path, expected in zip(case.images, case.patches(), strict=True):
            np.testing.assert_allclose(patchify(pixels(path.read_bytes()), settings).values, expected, atol=1e-6)


@pytest.mark.parametrize(("width", "height"), [(3, 40), (40, 27), (1, 1)])
@pytest.mark.parametrize("kind", ["PNG", "DICOM"])
def test_a_picture_of_a_few_pixels_is_refused(width: int, height: int, kind: str) -> None:
    shades = np.zeros((height, width, 3), np.uint8)
    image = ImageInput(encode(Image.fromarray(shades)) if kind == "PNG" else saved(ultrasound(shades)))
    resolution = PreprocessSettings().resolution
    sentence = f"^image 1 has {width} x {height} pixels: send one of at least 28 x 28.$"
    with pytest.raises(InvalidInput, match=sentence):
        measure_image(image, resolution)
    with pytest.raises(InvalidInput, match=sentence):
        decode_image(image, finish=partial(fit, settings=resolution, name=image.name))


def test_settings_survive_the_bundle() -> None:
    settings = PreprocessSettings(min_pixels=100, image_mean=(0.1, 0.2, 0.3))
    assert PreprocessSettings.from_config(settings.as_config()) == settings
    spelled_otherwise = {"size": {"shortest_edge": 3136, "longest_edge": 37632}}
    assert PreprocessSettings.from_config(spelled_otherwise).max_pixels == 37632


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_resizing_is_the_published_processors(height: int, width: int) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as published

    settings = PreprocessSettings()
    if min(height, width) < 28:
        with pytest.raises(InvalidInput, match="send one of at least 28 x 28"):
            smart_resize(height, width, settings)
        return
    try:
        expected = published(height, width, 28, settings.min_pixels, settings.max_pixels)
    except ValueError:
        with pytest.raises(InvalidInput, match="times as long as wide"):
            smart_resize(height, width, settings)
        return
    resized = smart_resize(height, width, settings)
    assert resized == tuple(expected)
    assert all(side % 28 == 0 and side > 0 for side in resized)


def turned(kind: str, after_the_pixels: bool = False, orientation: int = 6) -> bytes:
    """A picture of 60 x 40 pixels that says that it is to be turned."""
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.new("RGB", (60, 40), "red").save(buffer, kind, exif=exif)
    data = buffer.getvalue()
    if after_the_pixels:
        at = data.index(b"eXIf") - 4
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        data = data[:at] + data[end:-12] + data[at:end] + data[-12:]
    return data


FILES = {
    "png": lambda: png(90, 61),
    "turned jpeg": lambda: turned("JPEG"),
    "turned png": lambda: turned("PNG"),
    "png turned behind its pixels": lambda: turned("PNG", after_the_pixels=True),
    "png mirrored": lambda: turned("PNG", orientation=2),
    "cine": lambda: shipped("examples_ybr_color.dcm"),
    "regions": lambda: saved(
        ultrasound(np.zeros((80, 120, 3), np.uint8), SequenceOfUltrasoundRegions=[region(2, 1, 90, 60)])
    ),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("whole", [False, True])
def test_what_is_measured_is_what_is_decoded(kind: str, whole: bool) -> None:
    image = ImageInput(FILES[kind](), selection=FrameSelection(), crop_to_regions=not whole)
    resolution = PreprocessSettings().resolution
    measured = measure_image(image, resolution)
    frames = decode_image(image, finish=partial(fit, settings=resolution))
    assert measured.sizes == tuple(frame.pixels.shape[:2] for frame in frames)


def test_a_shortened_dicom_cine_keeps_the_numbers_of_the_original() -> None:
    """All of its frames are read, in the file's order, whatever the header says of a representative one."""
    shades = np.arange(3, dtype=np.uint8)[:, None, None] * np.full((1, 40, 50), 90, np.uint8)
    data = saved(ultrasound(shades, "MONOCHROME2", NumberOfFrames=3, RepresentativeFrameNumber=2))
    image = ImageInput(data, original=OriginalFrames((4, 70, 8), 71))
    frames = decode_image(image)
    assert [(frame.name, int(frame.pixels[0, 0, 0])) for frame in frames] == [
        ("image 1, frame 4", 0),
        ("image 1, frame 70", 90),
        ("image 1, frame 8", 180),
    ]
    assert [(frame.source.index, frame.source.count) for frame in frames if frame.source] == [
        (4, 71),
        (70, 71),
        (8, 71),
    ]
    assert len(measure_image(image, PreprocessSettings().resolution).sizes) == 3
    with pytest.raises(InvalidInput, match=r"^image 1 was shortened to 2 frames, and has 3"):
        decode_image(ImageInput(data, original=OriginalFrames((4, 70), 71)))
    with pytest.raises(InvalidInput, match="original frame numbers outside its 71 original frames"):
        measure_image(ImageInput(data, original=OriginalFrames((4, 70, 71), 71)), PreprocessSettings().resolution)


def test_pixels_that_are_not_as_measured_are_refused() -> None:
    image, resolution = ImageInput(png(90, 61)), PreprocessSettings().resolution
    other = LocalDecoder().measure(ImageInput(png(200, 61)), resolution)
    with pytest.raises(InvalidInput, match="image 1 is damaged: its pixels are not of the size"):
        LocalDecoder().decode(image, other)


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([784, 37_632, 1_003_520]))
def test_no_fitted_frame_is_larger_than_is_said(height: int, width: int, max_pixels: int) -> None:
    resolution = Resolution(28, 784, max_pixels)
    with suppress(InvalidInput):
        rows, columns = smart_resize(height, width, resolution)
        assert rows * columns <= most_pixels(resolution)


def test_a_fitted_frame_is_not_resized_again() -> None:
    """Resizing twice could give another size; patches of a fitted frame are those of the frame itself."""
    settings = PreprocessSettings(max_pixels=196 * 28 * 28)
    for seed, (width, height) in enumerate([(640, 480), (801, 601), (333, 29), (57, 3000)]):
        raw = pixels(png(width, height, seed))
        fitted, whole = cut(fit(raw, settings), settings), patchify(raw, settings)
        assert fitted.grid == whole.grid and np.array_equal(fitted.values, whole.values)
