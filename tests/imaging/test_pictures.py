"""Pictures of every format: right in each mode, layout and turn, or refused by name; and never more than is asked for."""

from __future__ import annotations

import io
import struct
import zlib
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.contracts.memory_file import MemoryFile
from echovlm_edge.runtime.contracts.request import Frame, FrameSelection, ImageInput, OriginalFrames, Window
from echovlm_edge.runtime.imaging import pictures
from echovlm_edge.runtime.imaging.image_file import ImageLimits, decode_image, measure_image
from echovlm_edge.runtime.imaging.preprocess import fit
from tests.support import tiff_files
from tests.support.decoding import RESOLUTION
from tests.support.tiff_files import Page, tiff

# Format, the modes that it holds, and the options that make it lossless.
FORMATS: dict[str, tuple[tuple[str, ...], dict[str, object]]] = {
    "PNG": (("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), {}),
    "BMP": (("1", "L", "P", "RGB", "RGBA"), {}),
    "TIFF": (("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I;16B", "I", "F"), {}),
    "WEBP": (("RGB", "RGBA"), {"lossless": True, "exact": True}),
    "GIF": (("1", "L", "P"), {}),
    "JPEG": (("L", "RGB", "CMYK"), {"quality": 100, "subsampling": 0}),
}
COMPRESSIONS = (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "tiff_deflate")
TURNED = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels),
}


def read(data: bytes, **fields: object) -> list[Frame]:
    return decode_image(ImageInput(data, **fields))  # type: ignore[arg-type]


def grey(frame: Frame) -> NDArray[np.uint8]:
    assert np.array_equal(frame.pixels, np.repeat(frame.pixels[..., :1], 3, axis=2))
    return frame.pixels[..., 0]


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours, so that a lossy format keeps them."""
    corners = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)


def in_mode(picture: Image.Image, mode: str) -> Image.Image:
    if mode.startswith("I;16"):
        deep = np.asarray(picture.convert("L")).astype(np.uint16) * 257
        return Image.fromarray(deep.astype(">u2") if mode == "I;16B" else deep)
    return picture.convert("L").convert(mode) if mode in ("I", "F", "LA") else picture.convert(mode)


def shown(picture: Image.Image) -> NDArray[np.uint8]:
    """What should be shown of a picture in any mode."""
    if picture.mode.startswith("I;16"):
        levels = np.asarray(picture)
        used = next(bits for bits in (8, 10, 12, 14, 16) if levels.max() < 2**bits)
        return np.repeat((levels >> (used - 8)).astype(np.uint8)[..., None], 3, axis=2)
    if picture.mode in ("I", "F"):
        values = np.asarray(picture).astype(np.float64)
        low, high = values.min(), values.max()
        levels = np.rint((values - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8)
        return np.repeat(levels[..., None], 3, axis=2)
    if picture.mode in ("LA", "RGBA"):
        clear = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", clear.size, "black"), clear)
    return np.asarray(picture.convert("RGB"))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([(kind, mode) for kind, (modes, _) in FORMATS.items() for mode in modes]),
    st.integers(28, 70),
    st.integers(28, 70),
    st.integers(1, 8),
    st.integers(0, 5),
    st.sampled_from(COMPRESSIONS),
)
def test_every_format_mode_size_and_turn(
    kind: tuple[str, str], width: int, height: int, orientation: int, seed: int, compression: str | None
) -> None:
    name, mode = kind
    picture, options = in_mode(scene(width, height, seed), mode), dict(FORMATS[name][1])
    turns = orientation if name in ("PNG", "TIFF", "WEBP", "JPEG") else 1
    if turns > 1:
        exif = Image.Exif()
        exif[0x0112] = turns
        options["exif"] = exif
    if name == "TIFF" and compression and mode != "YCbCr":
        options["compression"] = compression
    buffer = io.BytesIO()
    picture.save(buffer, name, **options)
    expected = TURNED[turns](shown(picture))
    tolerance = 4 if name == "JPEG" else 0
    for data in (buffer.getvalue(), MemoryFile.of([buffer.getvalue()])):
        (frame,) = decode_image(ImageInput(data))
        assert frame.pixels.shape == expected.shape
        assert np.abs(frame.pixels.astype(int) - expected).max() <= tolerance
        assert frame.source and (frame.source.index, frame.source.count) == (0, 1)
        assert (frame.source.height, frame.source.width) == expected.shape[:2]
        assert frame.source.box == (0, 0, expected.shape[1], expected.shape[0])
        assert measure_image(ImageInput(data), RESOLUTION).sizes == (fit(frame.pixels, RESOLUTION).shape[:2],)


def ramp(highest: int, dtype: object = np.uint16) -> NDArray[np.generic]:
    """[32, 40] from 0 to that."""
    return np.linspace(0, highest, 32 * 40).reshape(32, 40).astype(dtype)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize(("highest", "bits"), [(200, 8), (1000, 10), (1023, 10), (4095, 12), (16000, 14), (60000, 16)])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "TIFF big-endian"])
def test_sixteen_bits_are_shown_by_those_that_are_used(highest: int, bits: int, kind: str) -> None:
    values = ramp(highest)
    if kind == "PNG":
        buffer = io.BytesIO()
        Image.fromarray(values).save(buffer, "PNG")
        data = buffer.getvalue()
    else:
        data = tiff(Page(values), order=">" if "big" in kind else "<")
    (frame,) = read(data)
    assert np.array_equal(grey(frame), values.astype(int) >> (bits - 8))
    assert frame.source
    assert frame.source.window == Window((2**bits - 1) / 2, 2**bits - 1)
    note = () if bits == 16 else (f"Its 16-bit values use {bits} bits and are shown as such.",)
    assert frame.source.notes == note


def test_pages_are_shown_alike() -> None:
    """A dark page of a cine is not brighter than its neighbours."""
    data = tiff(Page(ramp(900)), Page(ramp(4000)), Page(ramp(100)))
    frames = read(data, selection=FrameSelection(evenly_spaced=3))
    assert [int(grey(frame).max()) for frame in frames] == [900 >> 4, 4000 >> 4, 100 >> 4]
    assert len({frame.source.window for frame in frames if frame.source}) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.int16])
@pytest.mark.parametrize("order", ["<", ">"])
def test_other_numbers_are_shown_by_their_own_range(dtype: type, order: str) -> None:
    values = ramp(3000, dtype) - dtype(1000)
    (frame,) = read(tiff(Page(values), order=order))
    expected = np.rint((values.astype(float) + 1000) * (255 / 3000))
    assert np.abs(grey(frame) - expected).max() <= 1
    assert frame.source and frame.source.window == Window(500, 3000)
    assert frame.source.notes == ("Its values from -1000 to 2000 are shown from black to white.",)


def test_what_is_no_number_is_black() -> None:
    values = ramp(10, np.float32)
    values[0, :4] = np.nan, np.inf, -np.inf, 5
    (frame,) = read(tiff(Page(values)))
    assert [int(level) for level in grey(frame)[0, :4]] == [0, 255, 0, 127]
    (frame,) = read(tiff(Page(np.full((32, 40), np.nan, np.float32))))
    assert not frame.pixels.any()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_is_zero(dtype: type) -> None:
    values = ramp(255, np.uint8).astype(dtype) * dtype(1 if dtype is np.uint8 else 257)
    (frame,) = read(tiff(Page(values, tiff_files.WHITE_IS_ZERO)))
    assert np.array_equal(grey(frame), 255 - ramp(255, np.uint8))


@pytest.mark.parametrize("tile", [(), (16, 16), (16, 48)])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_planes_and_tiles(tile: tuple[int, int], planar: bool, order: str) -> None:
    colours = np.asarray(scene(45, 39))
    (frame,) = read(tiff(Page(colours, tiff_files.RGB, planar, tile), order=order))
    assert np.array_equal(frame.pixels, colours)


@pytest.mark.parametrize("order", ["<", ">"])
def test_colours_of_sixteen_bits_keep_the_upper_eight(order: str) -> None:
    colours = np.asarray(scene(45, 39))
    (frame,) = read(tiff(Page(colours.astype(np.uint16) * 257, tiff_files.RGB), order=order))
    assert np.array_equal(frame.pixels, colours)


def test_a_photograph_in_cmyk_is_not_inverted() -> None:
    picture = scene(40, 32)
    buffer = io.BytesIO()
    picture.convert("CMYK").save(buffer, "JPEG", quality=100, subsampling=0)
    assert b"Adobe" in buffer.getvalue()
    (frame,) = read(buffer.getvalue())
    assert np.abs(frame.pixels.astype(int) - np.asarray(picture)).max() <= 4


@pytest.mark.parametrize(
    ("page", "sentence"),
    [
        (Page(np.zeros((32, 40, 3), np.uint8), tiff_files.LAB), r"has colours of a kind that is not read \(LAB\)"),
        (Page(np.zeros((32, 40, 3), np.uint8), tiff_files.YCBCR), "has subsampled colours without compression"),
        (Page(np.zeros((32, 40), np.float64)), "a TIFF file of a layout that is not read"),
        (Page(np.zeros((32, 40, 7), np.uint8)), "a TIFF file of a layout that is not read"),
    ],
    ids=["lab", "subsampled", "doubles", "seven"],
)
def test_layouts_that_are_not_read_are_named(page: Page, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=f"^image 1 (is )?{sentence}"):
        read(tiff(page))


def animation(kind: str, count: int, **options: object) -> bytes:
    """Frames of one colour each, all different."""
    frames = [Image.new("RGB", (40, 32), (10 * number + 5, 200 - 7 * number, 40)) for number in range(count)]
    if kind == "GIF":  # their own palettes
        frames = [frame.convert("P", palette=Image.Palette.ADAPTIVE, colors=2) for frame in frames]
    buffer = io.BytesIO()
    more = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], **more, **options)
    return buffer.getvalue()


def colour_of(number: int) -> tuple[int, int, int]:
    return (10 * number + 5, 200 - 7 * number, 40)


ANIMATIONS = ("GIF", "WEBP", "PNG", "TIFF")


@pytest.mark.parametrize("kind", ANIMATIONS)
def test_an_animation_is_a_cine(kind: str) -> None:
    data = animation(kind, 9)
    (middle,) = read(data)
    assert middle.source and (middle.source.index, middle.source.count) == (4, 9)
    assert middle.name == "image 1, frame 4"
    for selection, numbers in (
        (FrameSelection(), [4]),
        (FrameSelection((8, 0, 3, 3)), [8, 0, 3, 3]),
        (FrameSelection(evenly_spaced=3), [0, 4, 8]),
        (FrameSelection(evenly_spaced=99), list(range(9))),
    ):
        image = ImageInput(data, selection=selection)
        frames = decode_image(image)
        assert [frame.source.index for frame in frames if frame.source] == numbers
        assert [tuple(frame.pixels[9, 9]) for frame in frames] == [colour_of(number) for number in numbers]
        assert measure_image(image, RESOLUTION).sizes == tuple(fit(f.pixels, RESOLUTION).shape[:2] for f in frames)
    with pytest.raises(InvalidInput, match=r"^image 1 has no frame 9: it has 9, counted from 0"):
        read(data, selection=FrameSelection((9,)))
    with pytest.raises(InvalidInput, match="at most 4 are read"):
        measure_image(
            ImageInput(data, selection=FrameSelection(evenly_spaced=9)), RESOLUTION, ImageLimits(max_frames=4)
        )


def test_a_shortened_animation_keeps_the_numbers_of_the_original() -> None:
    image = ImageInput(animation("GIF", 3), original=OriginalFrames((7, 50, 99), 100))
    assert [frame.source.index for frame in decode_image(image) if frame.source] == [7, 50, 99]
    wrong = ImageInput(animation("GIF", 3), original=OriginalFrames((7, 50), 100))
    for ask in (partial(measure_image, wrong, RESOLUTION), partial(decode_image, wrong)):
        with pytest.raises(InvalidInput, match="was shortened to 2 frames, and has 3"):
            ask()


def test_a_gif_shows_what_lies_below_what_is_clear() -> None:
    first, second = Image.new("RGBA", (40, 32), "red"), Image.new("RGBA", (40, 32), (0, 0, 0, 0))
    second.paste((0, 0, 255, 255), (0, 0, 10, 10))
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=[second], disposal=1)
    (frame,) = read(buffer.getvalue(), selection=FrameSelection((1,)))
    assert tuple(frame.pixels[5, 5]) == (0, 0, 255) and tuple(frame.pixels[20, 20]) == (255, 0, 0)


def test_smaller_copies_and_masks_are_no_pages() -> None:
    whole, copy = np.asarray(scene(60, 50)), np.asarray(scene(30, 28))
    data = tiff(
        Page(copy, tiff_files.RGB, tags={254: [1]}),
        Page(whole, tiff_files.RGB),
        Page(copy, tiff_files.RGB, tags={254: [1]}),
        Page(copy[..., 0], tags={254: [4]}),
    )
    (frame,) = read(data)
    assert np.array_equal(frame.pixels, whole) and frame.source and frame.source.count == 1
    (only,) = read(tiff(Page(copy, tiff_files.RGB, tags={254: [1]})))
    assert np.array_equal(only.pixels, copy)


def test_pages_of_several_sizes() -> None:
    pages = [np.asarray(scene(60, 50)), np.asarray(scene(120, 45)), np.asarray(scene(33, 70))]
    image = ImageInput(tiff(*(Page(page, tiff_files.RGB) for page in pages)), selection=FrameSelection(evenly_spaced=3))
    frames = decode_image(image)
    assert all(np.array_equal(frame.pixels, page) for frame, page in zip(frames, pages, strict=True))
    assert measure_image(image, RESOLUTION).sizes == tuple(fit(page, RESOLUTION).shape[:2] for page in pages)


def test_a_later_page_can_be_too_large() -> None:
    small, large = np.zeros((30, 30), np.uint8), np.zeros((100, 100), np.uint8)
    image = ImageInput(tiff(Page(small), Page(large)), selection=FrameSelection((1,)))
    for ask in (measure_image, lambda image, _, limits: decode_image(image, limits)):
        with pytest.raises(InvalidInput, match="100 x 100 pixels, more than 5,000"):
            ask(image, RESOLUTION, ImageLimits(max_pixels=5000))


@pytest.mark.parametrize("kind", ["GIF", "TIFF"])
def test_one_that_was_cut_off_gives_the_frames_that_it_has(kind: str) -> None:
    data = (
        animation("GIF", 9) if kind == "GIF" else tiff(*(Page(ramp(90 + 9 * number, np.uint8)) for number in range(9)))
    )
    original = read(data, selection=FrameSelection(evenly_spaced=9))
    counts = []
    for fraction in (0.5, 0.8, 0.97):
        frames = read(data[: int(len(data) * fraction)], selection=FrameSelection(evenly_spaced=9))
        counts.append(len(frames))
        assert all(np.array_equal(ours.pixels, theirs.pixels) for ours, theirs in zip(frames, original, strict=False))
    assert 1 <= counts[0] < counts[1] < 9


@pytest.mark.parametrize("kind", FORMATS)
def test_measuring_decodes_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    first, *others = (in_mode(scene(90, 61, seed), FORMATS[kind][0][-1]) for seed in range(4))
    first.save(buffer, kind, **({"save_all": True, "append_images": others} if kind in ANIMATIONS else {}))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("it was decoded"))
    expected = fit(np.zeros((61, 90, 3), np.uint8), RESOLUTION).shape[:2]
    assert measure_image(ImageInput(buffer.getvalue()), RESOLUTION).sizes == (expected,)


def endless_gif(count: int) -> bytes:
    """Make an animation with so many frames of one pixel."""
    head = b"GIF89a" + struct.pack("<HHBBB", 40, 32, 0x80, 0, 0) + bytes(6)
    return head + count * (b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00") + b"\x3b"


def test_frames_are_not_counted_without_end() -> None:
    assert measure_image(ImageInput(endless_gif(pictures.MOST_FRAMES)), RESOLUTION).sizes
    with pytest.raises(InvalidInput, match=r"^image 1 has more than 10,000 frames: send a part of it"):
        measure_image(ImageInput(endless_gif(pictures.MOST_FRAMES + 1)), RESOLUTION)
    lying = bytearray(animation("PNG", 2))
    at = lying.index(b"acTL")
    lying[at + 4 : at + 8] = (1 << 30).to_bytes(4, "big")
    lying[at + 12 : at + 16] = zlib.crc32(lying[at : at + 12]).to_bytes(4, "big")
    with pytest.raises(InvalidInput, match="more than 10,000 frames"):
        measure_image(ImageInput(bytes(lying)), RESOLUTION)


def test_a_directory_that_leads_back_to_itself_ends() -> None:
    data = bytearray(tiff(Page(ramp(200, np.uint8)), Page(ramp(100, np.uint8))))
    (first,) = struct.unpack_from("<L", data, 4)
    (entries,) = struct.unpack_from("<H", data, first)
    (second,) = struct.unpack_from("<L", data, first + 2 + 12 * entries)
    struct.pack_into("<L", data, second + 2 + 12 * entries, first)
    frames = read(bytes(data), selection=FrameSelection(evenly_spaced=9))
    assert len(frames) == 2


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_a_truncated_picture_is_refused_or_read(kind: str, fraction: float) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).convert(
        FORMATS[kind][0][-1] if kind != "TIFF" else "RGB"
    ).save(buffer, kind)
    with pytest.raises(InvalidInput, match=r"^image 1 is ") as refused:
        read(buffer.getvalue()[: int(len(buffer.getvalue()) * fraction)])
    assert "\n" not in str(refused.value)


MEDIA_TYPES = {
    "PNG": "image/png",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "JPEG": "image/jpeg",
}


@pytest.mark.parametrize("kind", MEDIA_TYPES)
def test_the_media_type_is_checked(kind: str) -> None:
    buffer = io.BytesIO()
    scene(40, 32).convert("P" if kind == "GIF" else "RGB").save(buffer, kind)
    assert read(buffer.getvalue(), media_type=MEDIA_TYPES[kind])
    wrong = next(other for other in MEDIA_TYPES.values() if other != MEDIA_TYPES[kind])
    with pytest.raises(InvalidInput, match=f"was sent as {wrong} but is {MEDIA_TYPES[kind]}: send the right"):
        read(buffer.getvalue(), media_type=wrong)


def test_a_jpegs_previews_are_no_frames() -> None:
    buffer = io.BytesIO()
    scene(60, 50).save(buffer, "MPO", save_all=True, append_images=[scene(30, 28)])
    (frame,) = read(buffer.getvalue())
    assert frame.pixels.shape == (50, 60, 3) and frame.source and frame.source.count == 1
