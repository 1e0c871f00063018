"""Generated DICOM files against other implementations: DCMTK, GDCM and OpenJPEG's programs, from Debian's packages.

The default run is a sample that is the same every time; ECHOVLM_LONG=1 runs all.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from echovlm_edge.runtime.contracts.request import ImageInput, Source
from echovlm_edge.runtime.imaging.dicom.reading import decode
from tests.support.dicom_files import saved, ultrasound

LIMITS = 64_000_000, 64
PACKAGES = {
    "dcmj2pnm": "dcmtk",
    "dcml2pnm": "dcmtk",
    "dcmcrle": "dcmtk",
    "dcmcjpeg": "dcmtk",
    "dcmcjpls": "dcmtk",
    "gdcmconv": "libgdcm-tools",
    "opj_compress": "libopenjp2-tools",
    "opj_decompress": "libopenjp2-tools",
}
ENCODERS = {
    RLELossless: ["dcmcrle"],
    JPEGLosslessSV1: ["dcmcjpeg", "+e1"],
    JPEGLSLossless: ["dcmcjpls", "+el"],
}
NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)


def sampled(all_: int) -> Callable[[Any], Any]:
    """So many files in a full run, every eighth of them otherwise."""
    count = all_ if os.environ.get("ECHOVLM_LONG") == "1" else max(1, all_ // 8)
    return settings(
        max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )


def run(*command: str | Path) -> None:
    program = str(command[0])
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed: apt-get install {PACKAGES[program]}")
    done = subprocess.run([str(word) for word in command], capture_output=True, timeout=60)
    assert done.returncode == 0, f"{command}: {done.stderr.decode(errors='replace')}"


def by_dcmtk(data: bytes, *options: str, program: str = "dcmj2pnm") -> np.ndarray:
    """What DCMTK shows, as RGB."""
    with tempfile.TemporaryDirectory() as folder:
        file, picture = Path(folder, "in.dcm"), Path(folder, "out.pnm")
        file.write_bytes(data)
        run(program, "-q", *options, file, picture)
        return np.asarray(Image.open(picture).convert("RGB")).astype(int)


def encoded(dataset: FileDataset, syntax: UID) -> bytes:
    """A file in a transfer syntax, by DCMTK's encoders where it is compressed."""
    if syntax in NATIVE:
        return saved(dataset)
    with tempfile.TemporaryDirectory() as folder:
        plain, packed = Path(folder, "in.dcm"), Path(folder, "out.dcm")
        plain.write_bytes(saved(dataset))
        program, *options = ENCODERS[syntax]
        run(program, *options, plain, packed)
        return packed.read_bytes()


def ours(data: bytes) -> tuple[np.ndarray, Source]:
    ((pixels, source),) = decode(ImageInput(data), *LIMITS)
    return pixels.astype(int), source


def differ(one: np.ndarray, other: np.ndarray) -> int:
    assert one.shape == other.shape
    return int(np.abs(one - other).max())


def smooth(seed: int, rows: int, columns: int, low: float, high: float) -> np.ndarray:
    """A picture without noise, that reaches from `low` to `high`."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:rows, 0:columns]
    waves = sum(
        rng.normal()
        * np.sin(2 * np.pi * (x * rng.uniform(0, 2) / columns + y * rng.uniform(0, 2) / rows + rng.uniform()))
        for _ in range(4)
    )
    unit = (waves - waves.min()) / np.ptp(waves)
    return np.rint(low + unit * (high - low)).astype(np.int64)


SIZES = st.tuples(st.integers(28, 45), st.integers(28, 45))
SEEDS = st.integers(0, 1 << 30)


@dataclass(frozen=True)
class Cells:
    """How samples are stored."""

    allocated: int
    stored: int
    high_bit: int
    signed: bool
    low: int = field(init=False)
    high: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", -(1 << self.stored - 1) if self.signed else 0)
        object.__setattr__(self, "high", (1 << self.stored - self.signed) - 1)

    def packed(self, values: np.ndarray, seed: int, dirty: bool) -> np.ndarray:
        """Cells with the values at their place, and anything in the bits around them where they are dirty."""
        shift = self.high_bit - self.stored + 1
        mask = (1 << self.stored) - 1 << shift
        cells = (values & (1 << self.stored) - 1) << shift
        if dirty:
            cells |= np.random.default_rng(seed).integers(0, 1 << self.allocated, values.shape) & ~mask
        elif self.signed and not shift:  # writers extend the sign
            cells = values & (1 << self.allocated) - 1
        return cells.astype(f"u{self.allocated // 8}")

    @property
    def attributes(self) -> dict[str, int]:
        return {
            "BitsAllocated": self.allocated,
            "BitsStored": self.stored,
            "HighBit": self.high_bit,
            "PixelRepresentation": int(self.signed),
        }


@st.composite
def grey_cells(draw: st.DrawFn) -> Cells:
    allocated = draw(st.sampled_from([8, 16]))
    stored = draw(
        st.sampled_from([8] if allocated == 8 else [8, 10, 12, 15, 16]) | st.integers(allocated // 2, allocated)
    )
    high_bit = draw(st.just(stored - 1) | st.integers(stored - 1, allocated - 1))
    return Cells(allocated, stored, high_bit, draw(st.booleans()))


def voi_table(rng: np.random.Generator, low: float, count: int) -> Dataset:
    item = Dataset()
    first = int(low) & 0xFFFF
    item.add_new(0x00283002, "US", [count, first, 12])
    item.add_new(0x00283006, "US", np.sort(rng.integers(0, 4096, count)).tolist())
    return item


@sampled(240)
@given(
    grey_cells(),
    SIZES,
    SEEDS,
    st.sampled_from(["MONOCHROME1", "MONOCHROME2"]),
    st.sampled_from([*NATIVE, *ENCODERS]),
    st.sampled_from(["none", "LINEAR", "LINEAR_EXACT", "SIGMOID", "unnamed", "table", "unusable"]),
    st.sampled_from(["none", "both", "slope", "empty"]),
    st.booleans(),
)
def test_grey(
    cells: Cells,
    size: tuple[int, int],
    seed: int,
    photometric: str,
    syntax: UID,
    window: str,
    rescale: str,
    dirty: bool,
) -> None:
    if syntax in ENCODERS:
        dirty = False
        assume(syntax == RLELossless or (cells.high_bit == cells.stored - 1 and not cells.signed))
    rng = np.random.default_rng(seed)
    size = (
        size[0],
        size[1] // 2 * 2,
    )  # DCMTK takes the byte that makes odd data even into the range (PS3.5 8.1.1: it is padding)
    values = smooth(seed, *size, *sorted(rng.integers(cells.low, cells.high + 1, 2)))
    assume(np.ptp(values) > 20)
    plain = ImplicitVRLittleEndian if syntax == ImplicitVRLittleEndian else ExplicitVRLittleEndian
    dataset = ultrasound(
        cells.packed(values, seed, dirty), photometric, syntax if syntax in NATIVE else plain, **cells.attributes
    )
    # DCMTK rounds rescaled values to whole numbers, which PS3.3 C.11.1.1.2 does not: so do whole slopes.
    slope, intercept = 1, 0
    if rescale in ("both", "slope"):
        slope, intercept = int(rng.integers(1, 5)), int(rng.integers(-500, 500)) if rescale == "both" else 0
        dataset.RescaleSlope, dataset.RescaleIntercept = str(slope), str(intercept)
    if rescale == "empty":
        dataset.RescaleSlope = dataset.RescaleIntercept = None
    units = values * slope + intercept
    options = ["+Wi", "1"]
    if window in ("LINEAR", "LINEAR_EXACT", "SIGMOID", "unnamed"):
        dataset.WindowCenter = str(round(float(rng.uniform(units.min(), units.max())), 2))
        dataset.WindowWidth = str(round(float(rng.uniform(0.1, 1.5) * np.ptp(units)) + 2, 2))
        if window != "unnamed":
            dataset.VOILUTFunction = window
        if window == "LINEAR_EXACT":  # unknown to DCMTK: PS3.3 C.11.2.1.3.2 is C.11.2.1.2.1 of these
            options = ["+Ww", str(float(dataset.WindowCenter) + 0.5), str(float(dataset.WindowWidth) + 1)]
    elif window == "table":
        dataset.VOILUTSequence = [voi_table(rng, max(units.min(), -30000), int(rng.integers(30, 300)))]
        options = ["+Wl", "1"]
    else:
        if window == "unusable":
            dataset.WindowCenter, dataset.WindowWidth = "40", "0"
        # DCMTK's own default is the full range of what can be stored, which is what 8 bits are shown over.
        options = [] if cells.stored == 8 and (slope, intercept) == (1, 0) else ["+Wm"]
    data = encoded(dataset, syntax)
    shown, source = ours(data)
    theirs = by_dcmtk(data, *options, program="dcml2pnm" if syntax == JPEGLSLossless else "dcmj2pnm")
    assert differ(shown, theirs) <= 1, source


def words(entries: np.ndarray, packed: bool) -> bytes:
    data = entries.astype("u1" if packed else "<u2").tobytes()
    return data + b"\0" * (len(data) % 2)


def with_palette(
    index_cells: np.ndarray, cells: Cells, tables: list[np.ndarray], first: int, bits: int, packed: bool, syntax: UID
) -> FileDataset:
    dataset = ultrasound(index_cells, "PALETTE COLOR", syntax, **cells.attributes)
    for number, (colour, entries) in enumerate(zip(("Red", "Green", "Blue"), tables, strict=True), start=1):
        descriptor = [len(entries) & 0xFFFF, first & 0xFFFF if not cells.signed else first, bits]
        dataset.add_new(0x00281100 + number, "SS" if cells.signed else "US", descriptor)
        dataset.add_new(0x00281200 + number, "OW", words(entries, packed))
        del colour
    return dataset


@sampled(80)
@given(
    st.sampled_from([Cells(8, 8, 7, False), Cells(16, 16, 15, False), Cells(16, 12, 11, False)]),
    st.sampled_from([64, 200, 256, 4096, 65536]),
    st.integers(0, 100),
    st.sampled_from(["8 packed", "8 in words", "16", "16 says 8 bits", "8 says 16 bits"]),
    st.sampled_from([ImplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless]),
    SIZES,
    SEEDS,
)
def test_palettes(
    cells: Cells, count: int, first: int, kind: str, syntax: UID, size: tuple[int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = smooth(seed, *size, 0, min(cells.high, count + first + 20))
    wide = kind in ("16", "16 says 8 bits")
    tables = [np.sort(rng.integers(0, 65536 if wide else 256, count)) for _ in range(3)]
    assume(max(int(entries.max()) for entries in tables) > (4096 if wide else 64))
    bits = 8 if kind in ("8 packed", "8 in words", "16 says 8 bits") else 16
    plain = syntax if syntax in NATIVE else ExplicitVRLittleEndian
    dataset = with_palette(cells.packed(values, seed, False), cells, tables, first, bits, kind == "8 packed", plain)
    shown, _ = ours(encoded(dataset, syntax))
    # PS3.3 C.7.6.3.1.5: below the first value mapped the first entry, above the last one the last. Of 16 bits a screen of 8 shows
    # the high ones.
    expected = np.stack(
        [entries[np.clip(values - first, 0, count - 1)] >> (8 if wide else 0) for entries in tables], axis=-1
    )
    np.testing.assert_array_equal(shown, expected)
    if kind in ("8 packed", "16") and count < 65536:  # what DCMTK reads as written
        assert differ(shown, by_dcmtk(encoded(dataset, syntax))) <= 1


def segmented(rng: np.random.Generator, count: int, top: int) -> list[int]:
    """Discrete and linear segments of so many entries in all."""
    data, made = [], 0
    while made < count:
        length = int(min(rng.integers(1, 40), count - made))
        if made and rng.integers(2):
            data += [1, length, int(rng.integers(0, top + 1))]
        else:
            data += [0, length, *rng.integers(0, top + 1, length).tolist()]
        made += length
    return data


@sampled(40)
@given(st.sampled_from([8, 16]), st.integers(20, 256), SIZES, SEEDS)
def test_segmented_palettes_against_pydicom(bits: int, count: int, size: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = smooth(seed, *size, 0, 255).astype(np.uint8)
    dataset = ultrasound(values, "PALETTE COLOR")
    for number in (1, 2, 3):
        dataset.add_new(0x00281100 + number, "US", [count, 0, bits])
        data = np.array([*segmented(rng, count - 3, (1 << bits) - 1), 0, 3, 0, 1, (1 << bits) - 1])
        dataset.add_new(0x00281220 + number, "OW", words(data, packed=bits == 8))
    shown, _ = ours(saved(dataset))
    np.testing.assert_allclose(shown, apply_color_lut(values, dataset) >> (bits - 8), atol=1)


def test_an_indirect_segment_repeats_segments() -> None:
    """PS3.3 C.7.9.2.3; the offset is in bytes. (pydicom 3.0 takes it in entries.)"""
    values = np.arange(28 * 28).reshape(28, 28).astype(np.uint8)
    data = [0, 2, 10 << 8, 20 << 8, 1, 4, 60 << 8, 2, 2, 0, 0]  # two entries, four linear ones, both again
    dataset = ultrasound(values, "PALETTE COLOR")
    for number in (1, 2, 3):
        dataset.add_new(0x00281100 + number, "US", [12, 0, 16])
        dataset.add_new(0x00281220 + number, "OW", np.array(data, "<u2").tobytes())
    shown, _ = ours(saved(dataset))
    once = np.array([10, 20, 30, 40, 50, 60])
    table = np.concatenate([once, once])
    np.testing.assert_array_equal(shown[..., 0], table[np.minimum(values, 11)])


def to_ybr(rgb: np.ndarray, top: int) -> np.ndarray:
    """PS3.3 C.7.6.3.1.2, for samples up to `top`."""
    matrix = np.array([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]])
    return np.clip(np.rint(rgb @ matrix.T + np.array([0, (top + 1) // 2, (top + 1) // 2])), 0, top).astype(np.int64)


def to_rgb(ybr: np.ndarray) -> np.ndarray:
    """The inverse, for 8 bits."""
    luma, blue, red = (ybr[..., channel] - (128 if channel else 0) for channel in range(3))
    rgb = np.stack((luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue), axis=-1)
    return np.clip(np.rint(rgb), 0, 255).astype(int)


def coloured(seed: int, size: tuple[int, int], top: int = 255, bottom: int = 0) -> np.ndarray:
    return np.stack([smooth(seed + channel, *size, bottom, top) for channel in range(3)], axis=-1)


@sampled(100)
@given(
    st.sampled_from(
        [Cells(8, 8, 7, False), Cells(16, 8, 7, False), Cells(16, 12, 11, False), Cells(16, 16, 15, False)]
    ),
    st.sampled_from(["RGB", "YBR_FULL", "YBR_FULL_422", "YBR_FULL_422 in full"]),
    st.booleans(),
    st.sampled_from([*NATIVE, RLELossless, JPEGLSLossless]),
    SIZES,
    SEEDS,
)
def test_colour(cells: Cells, kind: str, planar: bool, syntax: UID, size: tuple[int, int], seed: int) -> None:
    assume(syntax in NATIVE or (kind in ("RGB", "YBR_FULL") and cells.stored == cells.allocated))
    assume(syntax != JPEGLSLossless or kind == "RGB")
    assume(cells.allocated == 8 or not kind.startswith("YBR_FULL_422"))
    size = size[0], size[1] // 2 * 2
    rgb = coloured(seed, size, cells.high)
    samples = rgb if kind == "RGB" else to_ybr(rgb, cells.high)
    planar = planar and "422" not in kind
    dtype = f"u{cells.allocated // 8}"
    dataset = ultrasound(
        samples.astype(dtype), "RGB", syntax if syntax in NATIVE else ExplicitVRLittleEndian, **cells.attributes
    )
    dataset.PhotometricInterpretation = kind.split()[0]
    order = "<" if syntax.is_little_endian else ">"
    if planar:
        dataset.PlanarConfiguration = 1
        dataset.PixelData = samples.transpose(2, 0, 1).astype(order + dtype).tobytes()
    if kind == "YBR_FULL_422":
        pairs = samples.reshape(size[0], size[1] // 2, 2, 3)
        halved = np.concatenate([pairs[..., 0], pairs[:, :, 0, 1:]], axis=-1).astype(np.uint8)
        dataset.PixelData = halved.tobytes()
        chroma = np.repeat(pairs[:, :, :1, 1:], 2, axis=2)
        samples = np.concatenate([pairs[..., :1], chroma], axis=-1).reshape(samples.shape)
    data = encoded(dataset, syntax)
    shown, _ = ours(data)
    if kind != "YBR_FULL_422":
        assert differ(shown, np.rint(rgb * 255 / cells.high)) <= 2
    if kind == "YBR_FULL_422 in full":
        return  # DCMTK reads it as halved: PS3.3 C.7.6.3.1.2 has two chromas for every four samples, this file three for three
    if cells.stored == 8:  # of more bits DCMTK writes more
        theirs = by_dcmtk(data, program="dcml2pnm" if syntax == JPEGLSLossless else "dcmj2pnm")
        assert differ(shown, theirs) <= (0 if kind == "RGB" else 2)


def segments(jpeg: bytes) -> list[bytes]:
    """The marker segments of a JPEG up to its scan, which is the last."""
    found, at = [jpeg[:2]], 2
    while jpeg[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        found.append(jpeg[at:end])
        at = end
    return [*found, jpeg[at:]]


def with_ids(part: bytes, ids: tuple[int, ...]) -> bytes:
    """A frame or scan header whose three components have other ids."""
    changed = bytearray(part)
    if part[1] in (0xC0, 0xC1, 0xC2):
        changed[10:19:3] = bytes(ids)
    elif part[1] == 0xDA:
        changed[5:11:2] = bytes(ids)
    return bytes(changed)


ADOBE_YCBCR = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x01"
JPEG_KINDS = {  # coded as, markers kept, marker added, ids
    "JFIF": ("YCbCr", True, b"", (1, 2, 3)),
    "JFIF, odd ids": ("YCbCr", True, b"", (7, 8, 9)),
    "Adobe YCbCr": ("YCbCr", False, ADOBE_YCBCR, (1, 2, 3)),
    "Adobe YCbCr, odd ids": ("YCbCr", False, ADOBE_YCBCR, (0, 1, 2)),
    "ids 1 2 3": ("YCbCr", False, b"", (1, 2, 3)),
    "silent YCbCr": ("YCbCr", False, b"", (0, 1, 2)),
    "Adobe RGB": ("RGB", True, b"", (82, 71, 66)),
    "Adobe RGB, ids 1 2 3": ("RGB", True, b"", (1, 2, 3)),
    "ids R G B": ("RGB", False, b"", (82, 71, 66)),
    "silent RGB": ("RGB", False, b"", (0, 1, 2)),
}


def jpeg_of(rgb: np.ndarray, kind: str, subsampling: int, progressive: bool) -> bytes:
    coded, kept, added, ids = JPEG_KINDS[kind]
    file = io.BytesIO()
    options = {"keep_rgb": True} if coded == "RGB" else {"subsampling": subsampling}
    Image.fromarray(rgb.astype(np.uint8)).save(file, "JPEG", quality=95, progressive=progressive, **options)
    start, *parts = segments(file.getvalue())
    parts = [with_ids(part, ids) for part in parts if kept or part[1] not in (0xE0, 0xEE)]
    if progressive:  # further scans follow in the last part
        assert ids == (1, 2, 3) and coded == "YCbCr"
    return start + added + b"".join(parts)


def in_dicom(stream: bytes, size: tuple[int, int], label: str, syntax: UID, cells: Cells) -> bytes:
    colour = not label.startswith("MONOCHROME")
    dataset = ultrasound(np.zeros((*size, 3) if colour else size, np.uint8), "RGB" if colour else label, syntax)
    dataset.PhotometricInterpretation = label
    for name, value in cells.attributes.items():
        setattr(dataset, name, value)
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    return saved(dataset)


@sampled(100)
@given(
    st.sampled_from(sorted(JPEG_KINDS)),
    st.sampled_from(["RGB", "YBR_FULL", "YBR_FULL_422"]),
    st.sampled_from([0, 1, 2]),
    st.booleans(),
    SIZES,
    SEEDS,
)
def test_jpeg_colour(
    kind: str, label: str, subsampling: int, progressive: bool, size: tuple[int, int], seed: int
) -> None:
    coded, *_, ids = JPEG_KINDS[kind]
    if kind.startswith("silent"):
        label = "RGB" if coded == "RGB" else "YBR_FULL_422"
    progressive = progressive and ids == (1, 2, 3) and coded == "YCbCr"
    size = size[0] * 4, size[1] * 4  # smooth where two pixels share a chroma, too
    rgb = coloured(seed, size, 225, 30)
    data = in_dicom(jpeg_of(rgb, kind, subsampling, progressive), size, label, JPEGBaseline8Bit, Cells(8, 8, 7, False))
    shown, source = ours(data)
    assert differ(shown, rgb) <= 16, "lossy, but of the same colours"
    assert differ(shown, by_dcmtk(data, "+cp" if kind.startswith("silent") else "+cg")) <= 3
    assert bool(source.notes) == ((label == "RGB") != (coded == "RGB"))


@sampled(24)
@given(st.sampled_from(["MONOCHROME1", "MONOCHROME2"]), SIZES, SEEDS)
def test_grey_jpeg(label: str, size: tuple[int, int], seed: int) -> None:
    file = io.BytesIO()
    Image.fromarray(smooth(seed, *size, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    data = in_dicom(file.getvalue(), size, label, JPEGBaseline8Bit, Cells(8, 8, 7, False))
    assert differ(ours(data)[0], by_dcmtk(data)) <= 3


def by_openjpeg(picture: np.ndarray, top: int, *options: str) -> tuple[bytes, np.ndarray]:
    """A JPEG 2000 codestream, and what OpenJPEG's program decodes it to."""
    with tempfile.TemporaryDirectory() as folder:
        kind = "ppm" if picture.ndim == 3 else "pgm"
        plain, packed, back = Path(folder, f"in.{kind}"), Path(folder, "x.j2k"), Path(folder, f"out.{kind}")
        head = f"P{6 if picture.ndim == 3 else 5}\n{picture.shape[1]} {picture.shape[0]}\n{top}\n".encode()
        plain.write_bytes(head + picture.astype(">u2" if top > 255 else "u1").tobytes())
        run("opj_compress", "-i", plain, "-o", packed, *options)
        run("opj_decompress", "-i", packed, "-o", back)
        read = back.read_bytes().split(b"\n")
        size = picture.size * (2 if top > 255 else 1)
        assert read[0] == head[:2]
        decoded = np.frombuffer(back.read_bytes()[-size:], ">u2" if top > 255 else "u1").reshape(picture.shape)
        return packed.read_bytes(), decoded.astype(int)


@sampled(60)
@given(
    st.sampled_from([("RGB", 1), ("RGB", 0), ("YBR_RCT", 1), ("YBR_FULL", 0), ("YBR_FULL", 1), ("YBR_RCT", 0)]),
    st.booleans(),
    SIZES,
    SEEDS,
)
def test_jpeg_2000_colour(label: tuple[str, int], lossless: bool, size: tuple[int, int], seed: int) -> None:
    """The codestream's own transform decides; where it has none, the label does, which can mean only RGB if it names a transform."""
    photometric, transform = label
    rgb = coloured(seed, size)
    coded = to_ybr(rgb, 255) if label == ("YBR_FULL", 0) else rgb
    stream, decoded = by_openjpeg(
        coded, 255, "-mct", str(transform), "-n", "4", *([] if lossless else ["-I", "-r", "6"])
    )
    if photometric == "YBR_RCT" and not lossless:
        photometric = "YBR_ICT"
    data = in_dicom(stream, size, photometric, JPEG2000Lossless if lossless else JPEG2000, Cells(8, 8, 7, False))
    shown, _ = ours(data)
    if label == ("YBR_FULL", 0):
        decoded = to_rgb(decoded)
    assert differ(shown, decoded) <= (0 if lossless and label != ("YBR_FULL", 0) else 1)
    assert not lossless or differ(shown, rgb) <= 2


@sampled(40)
@given(st.sampled_from([8, 10, 12, 16]), st.booleans(), st.booleans(), SIZES, SEEDS)
def test_jpeg_2000_grey(stored: int, lossless: bool, signed: bool, size: tuple[int, int], seed: int) -> None:
    """Signed samples are often encoded as the unsigned numbers that their bits are."""
    cells = Cells(8 if stored == 8 else 16, stored, stored - 1, signed and lossless and stored > 8)
    values = smooth(seed, *size, cells.low // 2, cells.high // 2)
    stream, decoded = by_openjpeg(
        values & (1 << stored) - 1, (1 << stored) - 1, "-n", "4", *([] if lossless else ["-I", "-r", "4"])
    )
    data = in_dicom(stream, size, "MONOCHROME2", JPEG2000Lossless if lossless else JPEG2000, cells)
    shown, _ = ours(data)
    expected = values if lossless else decoded
    low, span = (0, 255) if cells.stored == 8 else (int(expected.min()), int(np.ptp(expected)))
    assert differ(shown[..., 0], np.rint((expected - low) * 255 / span).astype(int)) <= (0 if lossless else 1)
    with tempfile.TemporaryDirectory() as folder:
        plain, packed = Path(folder, "out.dcm"), Path(folder, "in.dcm")
        packed.write_bytes(data)
        run("gdcmconv", "--raw", packed, plain)
        theirs = dcmread(plain)
        assert theirs.file_meta.TransferSyntaxUID in NATIVE
        assert differ(shown, ours(plain.read_bytes())[0]) <= (0 if lossless else 1)
