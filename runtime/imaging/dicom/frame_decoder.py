"""Decode one frame's bytes to samples, in every transfer syntax of still pictures."""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass, field
from typing import Any

import libjpeg
import numpy as np
import openjpeg
from numpy.typing import NDArray
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import UID, ExplicitVRBigEndian, RLELossless

from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere, UserError
from echovlm_edge.runtime.formats.dicom_pixel_format import PALETTE, PixelFormat, shown
from echovlm_edge.runtime.formats.dicom_syntaxes import (
    CODESTREAMS,
    DEFLATED_FRAME,
    ENCAPSULATED_UNCOMPRESSED,
    JPEG_XL,
    NATIVE,
)
from echovlm_edge.runtime.imaging.dicom.codestream import (
    Codestream,
    read_codestream,
    with_adobe_transform,
    with_end,
    with_whole_spectrum,
)
from echovlm_edge.runtime.imaging.undecodable import Undecodable

NAMES = {  # of those that pydicom does not know
    ENCAPSULATED_UNCOMPRESSED: "Encapsulated Uncompressed Explicit VR Little Endian",
    DEFLATED_FRAME: "Deflated Image Frame Compression",
    **dict(zip(JPEG_XL, ("JPEG XL Lossless", "JPEG XL JPEG Recompression", "JPEG XL"), strict=True)),
}
NO_MEMORY = (
    "Unable to allocate",
    "bad_alloc",
)  # messages of numpy and C++, which libraries put into errors of their own
GREY, RGB, YCBCR = "grey", "RGB", "YCbCr"


@dataclass(frozen=True)
class Samples:
    """A decoded frame.

    Attributes:
        values: integers [rows, columns], or [rows, columns, 3].
        colour: grey (or a palette's indices), RGB, or YCbCr in the full range.
        depth: how many bits of the values are used.
        notes: notes about the frame.
    """

    values: NDArray[Any] = field(repr=False)
    colour: str
    depth: int
    notes: tuple[str, ...] = ()


def syntax_name(syntax: UID) -> str:
    """Return the name of a transfer syntax for a sentence."""
    return NAMES.get(syntax) or shown(syntax.name)


def decode_frame(name: str, data: bytes, pixels: PixelFormat, syntax: UID) -> Samples:
    """Decode one frame.

    Raises:
        Undecodable: the decoder refuses the frame.
        InvalidInput: the frame has another size than its header states, or is of an unsupported kind.
        NotPossibleHere: there is no decoder for its encoding here.
    """
    try:
        return _decode(name, data, pixels, syntax)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # each decoder raises exceptions of its own
        if any(shortage in str(error) for shortage in NO_MEMORY):
            raise MemoryError from None
        called = syntax_name(syntax)
        damaged = (
            f"{name} cannot be decoded ({called}): its pixel data is truncated or damaged ({type(error).__name__})."
        )
        raise Undecodable(damaged, name, syntax, called) from None


def _decode(name: str, data: bytes, pixels: PixelFormat, syntax: UID) -> Samples:
    if syntax in NATIVE or syntax == ENCAPSULATED_UNCOMPRESSED:
        return _uncompressed(data, pixels, big=syntax == ExplicitVRBigEndian)
    if syntax == DEFLATED_FRAME:  # PS3.5 A.4.13: raw deflate of what an uncompressed frame would be
        whole = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, -(-pixels.frame_bits // 8) + 1)
        return _uncompressed(whole, pixels)
    if syntax == RLELossless:
        return _run_lengths(data, pixels)
    if syntax in JPEG_XL:
        return _jpeg_xl(name, data, pixels)
    if syntax in CODESTREAMS:
        return _codestream(name, data, pixels)
    if syntax.is_transfer_syntax:
        raise NotPossibleHere(f"{name} cannot be decoded by this server: it has no decoder for {syntax_name(syntax)}.")
    raise InvalidInput(f"{name} cannot be decoded ({syntax_name(syntax)}): its encoding is unknown.")


def _uncompressed(data: bytes, pixels: PixelFormat, big: bool = False) -> Samples:
    shape = pixels.rows, pixels.columns
    if pixels.allocated == 1:
        bits = np.unpackbits(np.frombuffer(data, np.uint8), count=pixels.pixels * pixels.samples, bitorder="little")
        return _labelled(bits.reshape(shape), pixels)
    if pixels.halved_chroma and 8 * len(data) < pixels.frame_bits:  # Y Y Cb Cr for two pixels, PS3.3 C.7.6.3.1.2
        pairs = np.frombuffer(data, np.uint8, pixels.pixels * 2).reshape(pixels.rows, pixels.columns // 2, 4)
        chroma = np.repeat(pairs[..., 2:], 2, axis=1)
        return _labelled(np.dstack((pairs[..., :2].reshape(shape), chroma)), pixels)
    cells = np.frombuffer(data, f"{'>' if big else '<'}u{pixels.allocated // 8}", pixels.pixels * pixels.samples)
    if pixels.samples == 1:
        return _labelled(_stored_bits(cells.reshape(shape), pixels), pixels)
    planes = cells.reshape(3, *shape).transpose(1, 2, 0) if pixels.planar else cells.reshape(*shape, 3)
    return _labelled(_stored_bits(planes, pixels), pixels)


def _stored_bits(cells: NDArray[Any], pixels: PixelFormat) -> NDArray[Any]:
    """The bits of each cell that are the sample's (PS3.5 8.1.1), as a signed or unsigned number."""
    native = cells.astype(cells.dtype.newbyteorder("="), copy=False)
    spare = pixels.allocated - 1 - pixels.high_bit  # bits above the sample: overlays, or whatever a writer left there
    if pixels.signed:
        native = native.view(np.dtype(f"i{native.dtype.itemsize}"))
    if pixels.stored == pixels.allocated:
        return native
    raised = native << spare  # the bits above fall off
    return raised >> (pixels.allocated - pixels.stored)  # the bits below fall off, and the sign is kept


def _labelled(values: NDArray[Any], pixels: PixelFormat) -> Samples:
    """Label samples with the header's colour, for encodings that state none."""
    colour = _label_colour(pixels) or RGB
    return Samples(values, colour, pixels.stored)


def _label_colour(pixels: PixelFormat) -> str:
    if pixels.samples == 1:
        return GREY
    if pixels.photometric in ("YBR_FULL", "YBR_FULL_422"):
        return YCBCR
    return RGB if pixels.photometric == "RGB" else ""  # the others are of encodings that give RGB


def _run_lengths(data: bytes, pixels: PixelFormat) -> Samples:
    options: dict[str, Any] = {
        "rows": pixels.rows,
        "columns": pixels.columns,
        "samples_per_pixel": pixels.samples,
        "photometric_interpretation": "RGB" if pixels.samples == 3 else "MONOCHROME2",
        "bits_allocated": pixels.allocated,
        "bits_stored": pixels.allocated,
        "pixel_representation": 0,
        "planar_configuration": 0,
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
    }
    cells, _ = get_decoder(RLELossless).as_array(encapsulate([data]), index=0, raw=True, **options)
    return _labelled(_stored_bits(cells, pixels), pixels)


def _codestream(name: str, data: bytes, pixels: PixelFormat) -> Samples:
    """Decode JPEG of all kinds; where they differ, the codestream's own headers win over the DICOM header."""
    header = read_codestream(data)
    if (header.height, header.width) != (pixels.rows, pixels.columns):
        raise InvalidInput(
            f"{name} has {header.kind} data of {header.width} x {header.height} pixels where its header says "
            f"{pixels.columns} x {pixels.rows}: send a correct file."
        )
    if header.samples not in (1, 3) or (pixels.photometric == PALETTE and header.samples != 1):
        raise InvalidInput(
            f"{name} has {header.kind} data of {header.samples} components, which {pixels.photometric} cannot have: "
            "send a correct file."
        )
    if not header.ended:
        raise InvalidInput(f"{name} has {header.kind} data whose end is missing: send a complete file.")
    if header.kind == "JPEG" and header.precision not in (8, 12):  # ITU-T T.81, table B.2: there are no others
        raise InvalidInput(
            f"{name} has JPEG data of {header.precision} bits, which lossy JPEG cannot have: send it as JPEG 2000 or uncompressed."
        )
    if header.kind == "JPEG" and header.precision == 8:
        return _with_notes(_lossy_jpeg(data, header, pixels), header, pixels)
    values = _by_library(data, header)
    if header.kind != "JPEG" and header.precision == pixels.allocated > pixels.stored:
        values = _stored_bits(values, pixels)  # the cells themselves were encoded
        return _with_notes(_coloured(values, header, pixels, pixels.stored), header, pixels)
    if header.signed and header.samples == 3:
        values = values + (1 << header.precision - 1)  # no colour is negative: only their zero is another
    if pixels.signed and not header.signed:
        spare = 8 * values.dtype.itemsize - header.precision
        values = values.view(np.dtype(f"i{values.dtype.itemsize}")) << spare >> spare
    return _with_notes(_coloured(values, header, pixels, header.precision), header, pixels)


def _lossy_jpeg(data: bytes, header: Codestream, pixels: PixelFormat) -> Samples:
    """Decode to RGB or grey. libjpeg converts coefficients to RGB without rounding in between, and refuses slightly wrong files;
    Pillow's decoder is several times as fast, up to 3 levels less exact, and accepts them.
    """
    colour = header.colour or _label_colour(pixels)
    transformed = header.samples == 3 and colour != RGB
    try:
        values = libjpeg.decode(data, colour_transform=int(transformed))
    except RuntimeError:
        if header.samples == 3 and not header.colour:
            data = with_adobe_transform(data, transformed)  # what it cannot know from the codestream
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as picture:
            values = np.asarray(picture)
    return Samples(values, RGB if header.samples == 3 else GREY, 8)


def _by_library(data: bytes, header: Codestream) -> NDArray[Any]:
    if header.kind == "JPEG 2000":
        return openjpeg.decode(with_end(data))
    try:
        return libjpeg.decode(data, colour_transform=0)
    except RuntimeError:
        if header.kind != "JPEG":
            raise
        return libjpeg.decode(with_whole_spectrum(data), colour_transform=0)


def _coloured(values: NDArray[Any], header: Codestream, pixels: PixelFormat, depth: int) -> Samples:
    if header.samples == 1:
        return Samples(values, GREY, depth)
    return Samples(values, header.colour or _label_colour(pixels) or RGB, depth)


def _with_notes(samples: Samples, header: Codestream, pixels: PixelFormat) -> Samples:
    notes = []
    label = _label_colour(pixels)
    if header.samples != pixels.samples:
        found = "grey" if header.samples == 1 else "in colour"
        notes.append(f"The file says {pixels.photometric}, its {header.kind} data is {found}.")
    elif header.colour and label and header.colour != label and (header.kind, label) != ("JPEG 2000", RGB):
        notes.append(f"The file says {pixels.photometric}, its {header.kind} data is {header.colour}.")
    return Samples(samples.values, samples.colour, samples.depth, tuple(notes))


def _jpeg_xl(name: str, data: bytes, pixels: PixelFormat) -> Samples:
    """Decode JPEG XL with Pillow's plugin, which returns RGB or grey, whatever the codestream contains."""
    try:
        from pillow_jxl import JpegXLImagePlugin  # Pillow knows the format once it is imported
    except ImportError:
        raise NotPossibleHere(
            f"{name} is a JPEG XL picture, which this server cannot decode: pip install pillow-jxl-plugin there."
        ) from None
    JpegXLImagePlugin.DECODE_THREADS = 0  # in the calling thread
    with Image.open(io.BytesIO(data), formats=("JXL",)) as picture:
        if picture.size != (pixels.columns, pixels.rows):
            raise InvalidInput(f"{name} has JPEG XL data of another size than its header says: send a correct file.")
        if picture.mode not in ("L", "RGB", "I;16"):
            raise NotPossibleHere(
                f"{name} is a JPEG XL picture of a kind ({picture.mode}) that this server cannot decode."
            )
        values = np.asarray(picture)
    if picture.mode == "RGB":
        return Samples(values, RGB, 8)
    return Samples(values, GREY, 8 if picture.mode == "L" else pixels.stored)
