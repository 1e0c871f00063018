"""Decode PNG, JPEG, BMP, TIFF, WebP and GIF files to RGB frames with Pillow. An animation or a TIFF with pages is a cine.

Pictures are rotated by their EXIF orientation, transparency is shown on black, and colour profiles are ignored.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple, TypeGuard

import numpy as np
from numpy.typing import NDArray

# The plugins to load; Pillow would load all that it has.
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from echovlm_edge.runtime.contracts.errors import InvalidInput, UserError
from echovlm_edge.runtime.contracts.request import Box, ImageInput, Source, Window
from echovlm_edge.runtime.formats.dicom_frames import frames_to_read
from echovlm_edge.runtime.formats.media_types import GIF, PICTURES, PNG, TIFF, WEBP
from echovlm_edge.runtime.imaging import gif_blocks, png_chunks
from echovlm_edge.runtime.imaging.undecodable import Undecodable

PLUGINS = (BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin)
ANIMATED = (PNG, TIFF, WEBP, GIF)  # in other files further pictures, such as a JPEG's previews, are no cine
MOST_FRAMES = 10_000  # of a file: to decode one, all before it may have to be read
# TIFF's tags
NEW_SUBFILE_TYPE, BITS_PER_SAMPLE, PHOTOMETRIC, COLOUR_MAP, YCBCR_SUBSAMPLING = 254, 258, 262, 320, 530
NO_PAGE = 0b101  # of NEW_SUBFILE_TYPE: a smaller copy of another page, or its mask
WHITE_IS_ZERO = 0  # of PHOTOMETRIC
PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
MODES = (
    "1",
    "L",
    "LA",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBX",
    "CMYK",
    "YCbCr",
    *PREMULTIPLIED,
)  # that Pillow converts by itself
USED_BITS = (8, 10, 12, 14, 16)

# Pillow logs what it finds in a TIFF's tags; logs stay free of it.
logging.getLogger("PIL").addHandler(logging.NullHandler())
logging.getLogger("PIL").propagate = False

Pixels = NDArray[np.uint8]
TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class _Levels(NamedTuple):
    """The values that are shown as black and white, for a grey picture of more than 8 bits."""

    low: float
    high: float
    note: str


def measure(image: ImageInput, kind: str, max_pixels: int, max_frames: int) -> tuple[tuple[int, int], ...]:
    """Read the [height, width] of each frame that `decode` would return, without decoding. `kind` is one of `PICTURES`.

    Raises:
        Undecodable, InvalidInput: as `decode`, as far as headers show it.
    """
    header = png_chunks.header(image.open()) if kind == PNG else image.open()
    with _opened(image, header, kind, max_pixels) as (picture, turn):
        pages = _pages(image.name, picture, image.open(), kind)
        sizes = []
        for frame in _chosen(image, len(pages), max_frames):
            if kind == TIFF:  # an animation's frames have one size, and seeking to one decodes those before it
                _go_to(image.name, picture, pages[frame], max_pixels)
            sizes.append(_shown_size(picture, turn))
        return tuple(sizes)


def decode(image: ImageInput, kind: str, max_pixels: int, max_frames: int) -> Iterator[tuple[Pixels, Source]]:
    """Decode the requested frames in the requested order: RGB uint8 [height, width, 3], and the source of each.

    Grey values of 16 bits are scaled by the bits that the requested frames use (8, 10, 12, 14 or 16); values of 32 bits and
    floating point by the range of values in these frames.

    Raises:
        Undecodable: the decoder refuses the file.
        InvalidInput: the file is over a limit, lacks a requested frame, or is of an unsupported kind.
    """
    file = png_chunks.shown(image.open()) if kind == PNG else image.open()
    with _opened(image, file, kind, max_pixels) as (picture, turn):
        pages = _pages(image.name, picture, image.open(), kind)
        frames = _chosen(image, len(pages), max_frames)
        chosen = [pages[frame] for frame in frames]
        levels = _levels(image.name, picture, chosen, max_pixels) if _is_deep(picture) or kind == TIFF else None
        for frame in frames:
            _go_to(image.name, picture, pages[frame], max_pixels)
            _load(picture)
            deep = _is_deep(picture)
            shown = _deep_to_rgb(picture, levels) if deep and levels else _to_rgb(image.name, picture)
            upright = shown.transpose(turn) if turn is not None else shown
            yield (
                np.asarray(upright),
                Source(
                    frame,
                    len(pages),
                    upright.height,
                    upright.width,
                    Box(0, 0, upright.width, upright.height),
                    Window((levels.low + levels.high) / 2, levels.high - levels.low) if deep and levels else None,
                    (levels.note,) if deep and levels and levels.note else (),
                ),
            )


@contextmanager
def _opened(
    image: ImageInput, file: BinaryIO, kind: str, max_pixels: int
) -> Iterator[tuple[Image.Image, Image.Transpose | None]]:
    """Open what is needed of an image's file; yields it and how to rotate its pictures (Pillow itself rotates a TIFF's)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own bomb warning: the limit here is stricter
            picture = Image.open(file, formats=(PICTURES[kind],))
            check_size(image.name, picture.width, picture.height, max_pixels)
            yield picture, None if kind == TIFF else _turn(image, kind, picture)
    except (UserError, MemoryError):
        raise
    except Image.DecompressionBombError:  # from the header; Pillow's own limit is above ours
        raise InvalidInput(f"{image.name} has more than {max_pixels:,} pixels: send a smaller one.") from None
    except Exception as error:  # decoders raise all kinds of exceptions for damaged files
        if isinstance(error, OSError) and "out of memory" in str(error):  # the message of a decoder without memory
            raise MemoryError from None
        sentence = f"{image.name} is truncated or damaged and cannot be decoded ({type(error).__name__})."
        if kind == TIFF and isinstance(error, UnidentifiedImageError | SyntaxError):
            layout = "is a TIFF file of a layout that is not read, or damaged"
            sentence = f"{image.name} {layout}: save it as 8-bit grey or RGB."
        raise Undecodable(sentence, image.name, kind, kind) from None


def check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    """Refuse a picture by the size that its header states.

    Raises:
        InvalidInput: it has more than `max_pixels`.
    """
    if width * height > max_pixels:
        raise InvalidInput(
            f"{name} has {width:,} x {height:,} pixels, more than {max_pixels:,} in all: send a smaller one."
        )


def _turn(image: ImageInput, kind: str, picture: Image.Image) -> Image.Transpose | None:
    if kind == PNG:
        picture = Image.open(png_chunks.header(image.open()), formats=("PNG",))
    return TURNS.get(
        Image.Image.getexif(picture).get(ExifTags.Base.Orientation, 1)
    )  # PNG's own would decode the pixels


def _shown_size(picture: Image.Image, turn: Image.Transpose | None) -> tuple[int, int]:
    across = turn in (TURNS[5], TURNS[6], TURNS[7], TURNS[8])
    return (picture.width, picture.height) if across else (picture.height, picture.width)


def _pages(name: str, picture: Image.Image, file: BinaryIO, kind: str) -> Sequence[int]:
    """List the indices of a file's frames, as Pillow counts them."""
    if kind == TIFF:
        pages = _tiff_pages(name, picture)
    elif kind == GIF:
        pages = range(max(1, gif_blocks.count_frames(file, MOST_FRAMES)))
    else:
        pages = range(getattr(picture, "n_frames", 1) if kind in ANIMATED else 1)
    if len(pages) > MOST_FRAMES:
        raise InvalidInput(f"{name} has more than {MOST_FRAMES:,} frames: send a part of it.")
    return pages


def _tiff_pages(name: str, picture: Image.Image) -> Sequence[int]:
    """List the readable pages, without reduced copies and masks of others; where there is no other, the first page."""
    pages = []
    for page in range(MOST_FRAMES + 1):
        try:
            picture.seek(page)
        except EOFError:
            break
        except Exception:  # a truncated file still has the pages before
            if page == 0:
                raise
            break
        if not int(picture.tag_v2.get(NEW_SUBFILE_TYPE, 0)) & NO_PAGE:  # type: ignore[attr-defined]
            pages.append(page)
    return pages or [0]


def _chosen(image: ImageInput, count: int, max_frames: int) -> list[int]:
    if count == 1 and image.original is None and image.selection.indices not in ((), (0,)):
        raise InvalidInput(f"{image.name} has one frame: leave the frame selection out.")
    return frames_to_read(image, count, max_frames)


def _go_to(name: str, picture: Image.Image, page: int, max_pixels: int) -> None:
    if page != picture.tell():
        picture.seek(page)
    check_size(name, picture.width, picture.height, max_pixels)


def _load(picture: Image.Image) -> None:
    picture.load()
    colour_map = picture.tag_v2.get(COLOUR_MAP) if _is_tiff(picture) and picture.mode == "P" else None
    if colour_map and max(colour_map) < 256:  # bytes where 16 bits are meant: old writers' way, which libtiff knows too
        picture.putpalette(np.reshape(colour_map, (3, -1)).T.astype(np.uint8).tobytes())


def _is_deep(picture: Image.Image) -> bool:
    """Check whether a picture is grey with more than 8 bits."""
    return picture.mode.startswith("I") or picture.mode == "F"


def _is_tiff(picture: Image.Image) -> TypeGuard[TiffImagePlugin.TiffImageFile]:
    return isinstance(picture, TiffImagePlugin.TiffImageFile)


def _levels(name: str, picture: Image.Image, pages: Sequence[int], max_pixels: int) -> _Levels | None:
    """Find common values of black and white for all of these pages, so that they can be compared."""
    lows, highs, sixteen = [], [], True
    for page in pages:
        _go_to(name, picture, page, max_pixels)
        if not _is_deep(picture):
            continue
        picture.load()
        values = np.asarray(picture)
        if picture.mode.startswith("I;16"):
            lows.append(0.0)
            highs.append(float(2 ** _used_bits(int(values.max()), _stated_bits(picture)) - 1))
            continue
        sixteen = False
        finite = values[np.isfinite(values)] if picture.mode == "F" else values
        lows.append(float(finite.min()) if finite.size else 0.0)
        highs.append(float(finite.max()) if finite.size else 0.0)
    if not lows:
        return None
    low, high = min(lows), max(highs)
    if not sixteen:
        return _Levels(low, high, f"Its values from {low:g} to {high:g} are shown from black to white.")
    bits = int(high).bit_length()
    return _Levels(low, high, f"Its 16-bit values use {bits} bits and are shown as such." if bits < 16 else "")


def _stated_bits(picture: Image.Image) -> int:
    """Return how many bits a 16-bit picture's values have: a TIFF can state fewer, such as 12."""
    if not _is_tiff(picture):
        return 16
    stated = picture.tag_v2.get(BITS_PER_SAMPLE, (16,))
    return int(stated[0])


def _used_bits(highest: int, stated: int) -> int:
    return stated if stated < 16 else next(bits for bits in USED_BITS if highest < 2**bits)


def _deep_to_rgb(picture: Image.Image, levels: _Levels) -> Image.Image:
    values = np.asarray(picture)
    if picture.mode.startswith("I;16") and levels.low == 0 and levels.high < 2**16:
        grey = (values >> (int(levels.high).bit_length() - 8)).astype(np.uint8)
    else:
        scale = 255 / (levels.high - levels.low) if levels.high > levels.low else 0.0
        with np.errstate(all="ignore"):
            grey = (
                np.nan_to_num(np.clip((values.astype(np.float64) - levels.low) * scale, 0, 255))
                .round()
                .astype(np.uint8)
            )
    if (
        isinstance(picture, TiffImagePlugin.TiffImageFile)
        and picture.tag_v2.get(PHOTOMETRIC, WHITE_IS_ZERO) == WHITE_IS_ZERO
    ):
        grey = 255 - grey
    return Image.fromarray(grey).convert("RGB")


def _to_rgb(name: str, picture: Image.Image) -> Image.Image:
    if _is_tiff(picture) and picture.mode == "YCbCr" and picture.tag_v2.get(YCBCR_SUBSAMPLING, (2, 2)) != (1, 1):
        raise InvalidInput(f"{name} has subsampled colours without compression, which are not read: save it as RGB.")
    if picture.mode not in MODES:
        raise InvalidInput(f"{name} has colours of a kind that is not read ({picture.mode}): save it as RGB.")
    picture = picture.convert(PREMULTIPLIED[picture.mode]) if picture.mode in PREMULTIPLIED else picture
    if "A" in picture.getbands() or "transparency" in picture.info:
        visible = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", visible.size, "black"), visible).convert("RGB")
    return picture.convert("RGB")
