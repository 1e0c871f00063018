"""Encodings of DICOM frames: rare ones, videos, codestreams that contradict their headers, and what is hostile."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    HEVCMP51,
    JPEG2000,
    JPEG2000MC,
    MPEG2MPML,
    MPEG4HP41,
    UID,
    DeflatedExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere, UserError
from echovlm_edge.runtime.contracts.request import FrameSelection, ImageInput, Source
from echovlm_edge.runtime.imaging.dicom import header as dicom_header
from echovlm_edge.runtime.imaging.dicom.reading import decode, read_header
from tests.support.dicom_files import saved, shipped, ultrasound

LIMITS = 64_000_000, 64
ROWS, COLUMNS = 40, 48
COLOUR = np.stack(
    [np.add.outer(np.arange(ROWS) * step, np.arange(COLUMNS) * (4 - step)) for step in (1, 2, 3)], axis=-1
).astype(np.uint8)
GREY = COLOUR[..., 0]
DEFLATED_FRAME, ENCAPSULATED, JPEG_XL = (UID(f"1.2.840.10008.1.2.{end}") for end in ("8.1", "1.98", "4.110"))


def with_frames(
    frames: list[bytes],
    syntax: UID,
    photometric: str = "RGB",
    size: tuple[int, int] = (ROWS, COLUMNS),
    **attributes: object,
) -> bytes:
    """A file of encapsulated frames."""
    colour = photometric not in ("MONOCHROME2", "PALETTE COLOR")
    dataset = ultrasound(np.zeros((*size, 3) if colour else size, np.uint8), "RGB" if colour else photometric)
    dataset.PhotometricInterpretation = photometric
    dataset.NumberOfFrames = len(frames)
    for name, value in attributes.items():
        setattr(dataset, name, value)
    dataset.PixelData = encapsulate(frames)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    if syntax.is_transfer_syntax:
        dataset.file_meta.TransferSyntaxUID = syntax
        return saved(dataset)
    like = (
        JPEGBaseline8Bit if len(syntax) <= len(JPEGBaseline8Bit) else HTJ2KLossless
    )  # pydicom does not write what it does not know
    dataset.file_meta.TransferSyntaxUID = like
    padded = [uid.encode() + b"\0" * (len(uid) % 2) for uid in (like, syntax)]
    return saved(dataset).replace(padded[0], padded[1].ljust(len(padded[0]), b"\0"))


def shown(data: bytes, **fields: object) -> list[tuple[np.ndarray, Source]]:
    """Decode the frames, and check that their number and sizes match what was measured from the header."""
    image = ImageInput(data, **fields)  # type: ignore[arg-type]
    header, found = read_header(image, *LIMITS), decode(image, *LIMITS)
    assert [pixels.shape for pixels, _ in found] == [(header.height, header.width, 3)] * len(header.frames)
    return found


def one(data: bytes) -> np.ndarray:
    ((pixels, _),) = shown(data)
    return pixels


def jpeg(picture: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=95, **options)  # type: ignore[arg-type]
    return file.getvalue()


def deflated(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


def test_deflated_frames() -> None:
    """PS3.5 A.4.13."""
    frames = [COLOUR, COLOUR[::-1], COLOUR[:, ::-1]]
    data = with_frames([deflated(frame.tobytes()) for frame in frames], DEFLATED_FRAME)
    found = shown(data, selection=FrameSelection((2, 0)))
    np.testing.assert_array_equal(found[0][0], frames[2])
    np.testing.assert_array_equal(found[1][0], frames[0])
    bomb = with_frames([deflated(bytes(50_000_000))], DEFLATED_FRAME)
    assert (one(bomb) == 0).all(), "no more is inflated than a frame has"
    with pytest.raises(InvalidInput, match=r"Deflated Image Frame Compression.*truncated"):
        one(with_frames([deflated(COLOUR[:20].tobytes())], DEFLATED_FRAME))


def test_encapsulated_uncompressed_frames() -> None:
    np.testing.assert_array_equal(one(with_frames([COLOUR.tobytes()], ENCAPSULATED)), COLOUR)


@pytest.mark.parametrize("photometric", ["RGB", "MONOCHROME2"])
def test_jpeg_xl(photometric: str) -> None:
    pytest.importorskip("pillow_jxl", reason="pip install pillow-jxl-plugin")
    picture, file = COLOUR if photometric == "RGB" else GREY, io.BytesIO()
    Image.fromarray(picture).save(file, "JXL", lossless=True)
    pixels = one(with_frames([file.getvalue()], JPEG_XL, photometric))
    np.testing.assert_array_equal(pixels if photometric == "RGB" else pixels[..., 0], picture)
    with pytest.raises(InvalidInput, match="JPEG XL data of another size"):
        one(with_frames([file.getvalue()], JPEG_XL, photometric, (ROWS + 1, COLUMNS)))


def test_jpeg_xl_without_its_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    with pytest.raises(NotPossibleHere, match=r"JPEG XL.*pip install pillow-jxl-plugin"):
        one(with_frames([b"\xff\x0a"], JPEG_XL))


@pytest.mark.parametrize(
    ("label", "picture", "note"),
    [
        ("RGB", COLOUR, "The file says RGB, its JPEG data is YCbCr."),
        ("YBR_FULL_422", COLOUR, ""),
        ("MONOCHROME2", COLOUR, "The file says MONOCHROME2, its JPEG data is in colour."),
        ("RGB", GREY, "The file says RGB, its JPEG data is grey."),
        ("MONOCHROME2", GREY, ""),
    ],
)
def test_a_label_that_the_codestream_contradicts_is_noted(label: str, picture: np.ndarray, note: str) -> None:
    ((pixels, source),) = shown(with_frames([jpeg(picture, subsampling=0)], JPEGBaseline8Bit, label))
    expected = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
    assert np.abs(pixels.astype(int) - expected).mean() < 4
    assert source.notes == ((note,) if note else ())


@pytest.mark.parametrize("size", [(ROWS + 1, COLUMNS), (ROWS, COLUMNS - 1), (4000, 4000)])
def test_a_codestream_of_another_size_is_refused_before_decoding(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidInput, match=r"JPEG data of 48 x 40 pixels where its header says"):
        one(with_frames([jpeg(COLOUR)], JPEGBaseline8Bit, size=size))
    jpeg_2000 = dcmread(io.BytesIO(shipped("examples_jpeg2k.dcm")))
    jpeg_2000.Rows = size[0]
    with pytest.raises(InvalidInput, match=r"JPEG 2000 data of 640 x 480 pixels"):
        one(saved(jpeg_2000))


def test_four_components_are_refused() -> None:
    file = io.BytesIO()
    Image.fromarray(COLOUR).convert("CMYK").save(file, "JPEG")
    with pytest.raises(InvalidInput, match="JPEG data of 4 components, which RGB cannot have"):
        one(with_frames([file.getvalue()], JPEGBaseline8Bit))


def test_a_jpeg_that_libjpeg_refuses_and_a_viewer_shows() -> None:
    broken = jpeg(COLOUR).replace(b"\xff\xda\x00\x0c\x03", b"\xff\xd0\xff\xda\x00\x0c\x03")  # a restart before the scan
    expected = one(with_frames([jpeg(COLOUR)], JPEGBaseline8Bit)).astype(int)
    assert np.abs(one(with_frames([broken], JPEGBaseline8Bit)) - expected).max() <= 8
    np.testing.assert_array_equal(one(shipped("JPEG-lossy.dcm"))[:, :, 0].std() > 5, True)


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGLSLossless, JPEG2000, RLELossless, DEFLATED_FRAME, JPEG_XL])
@pytest.mark.parametrize("frame", [b"\0\0", b"\xff\xd8\xff", b"\xff\x4f\xff\x51\0\x29", bytes(range(256))])
def test_what_is_no_codestream_is_refused(syntax: UID, frame: bytes) -> None:
    with pytest.raises(UserError) as refused:
        one(with_frames([frame], syntax))
    assert "image 1" in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("part", [0.02, 0.3, 0.8, 0.97])
def test_a_truncated_codestream_is_no_picture(part: float) -> None:
    """Decoders fill it up with something."""
    real = dcmread(io.BytesIO(shipped("examples_jpeg2k.dcm")))
    jpeg_ls = dcmread(io.BytesIO(shipped("JPEGLSNearLossless_08.dcm")))
    for whole, syntax, size in (
        (jpeg(COLOUR), JPEGBaseline8Bit, (ROWS, COLUMNS)),
        (jpeg(COLOUR, progressive=True), JPEGBaseline8Bit, (ROWS, COLUMNS)),
        (next(generate_frames(real.PixelData, number_of_frames=1)), JPEG2000, (480, 640)),
        (next(generate_frames(jpeg_ls.PixelData, number_of_frames=1)), JPEGLSLossless, (45, 10)),
    ):
        label = "MONOCHROME2" if syntax == JPEGLSLossless else "RGB"
        assert one(with_frames([whole], syntax, label, size)).shape[:2] == size
        with pytest.raises(InvalidInput):
            one(with_frames([whole[: int(len(whole) * part)]], syntax, label, size))


def test_jpeg_2000_without_its_end_marker_is_whole() -> None:
    whole = next(generate_frames(dcmread(io.BytesIO(shipped("examples_jpeg2k.dcm"))).PixelData, number_of_frames=1))
    without = with_frames([whole[: whole.rindex(b"\xff\xd9")]], JPEG2000, "RGB", (480, 640))
    np.testing.assert_array_equal(one(without), one(with_frames([whole], JPEG2000, "RGB", (480, 640))))


def test_encodings_without_a_decoder_are_named() -> None:
    with pytest.raises(NotPossibleHere, match="JPEG 2000 Part 2"):
        one(with_frames([b"\xff\x4f\xff\x51"], JPEG2000MC))
    with pytest.raises(InvalidInput, match=r"1\.2\.3\.4.*encoding is unknown"):
        one(with_frames([b"\xff\x4f\xff\x51"], UID("1.2.3.4")))


def test_a_deflated_data_set_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ultrasound(np.zeros((1, 2000, 2000), np.uint8), "MONOCHROME2", DeflatedExplicitVRLittleEndian)
    data = saved(dataset)
    assert len(data) < 100_000 and one(data).shape == (2000, 2000, 3)
    monkeypatch.setattr(dicom_header, "MOST_INFLATED", 3_000_000)
    with pytest.raises(InvalidInput, match="inflates to more than 3,000,000 bytes"):
        one(data)
    monkeypatch.undo()
    with pytest.raises(InvalidInput):
        one(data[: len(data) // 2])


def ffmpeg(*options: str, into: Path) -> bytes:
    if not shutil.which("ffmpeg"):
        pytest.skip("ffmpeg is not installed: apt-get install ffmpeg")
    command = ["ffmpeg", "-loglevel", "error", "-y", *options, str(into)]
    subprocess.run(command, check=True, timeout=60, stdin=subprocess.DEVNULL)
    return into.read_bytes()


PATTERN = ("-f", "lavfi", "-i", "testsrc=size=160x120:rate=25:duration=0.6")  # 15 frames
VIDEOS: dict[str, tuple[UID, tuple[str, ...], str]] = {
    "MPEG-2": (MPEG2MPML, ("-c:v", "mpeg2video", "-q:v", "2", "-f", "mpeg2video"), "m2v"),
    "H.264": (MPEG4HP41, ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-f", "mp4"), "mp4"),
    "HEVC": (
        HEVCMP51,
        ("-c:v", "libx265", "-x265-params", "log-level=none", "-pix_fmt", "yuv420p", "-f", "hevc"),
        "hevc",
    ),
}


@pytest.mark.parametrize("codec", VIDEOS)
@pytest.mark.parametrize("stated", [15, None])
def test_videos(codec: str, stated: int | None, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="pip install av")
    syntax, options, kind = VIDEOS[codec]
    stream = ffmpeg(*PATTERN, *options, into=tmp_path / f"cine.{kind}")
    decoded = ffmpeg("-i", str(tmp_path / f"cine.{kind}"), "-f", "rawvideo", "-pix_fmt", "rgb24", into=tmp_path / "raw")
    expected = np.frombuffer(decoded, np.uint8).reshape(-1, 120, 160, 3).astype(int)
    data = with_frames([stream], syntax, "YBR_PARTIAL_420", (120, 160), NumberOfFrames=stated)
    # Of an HEVC stream the last frame, and what is shown after it, counts where the file says how many there are.
    count = 15 if stated or codec != "HEVC" else shown(data)[0][1].count
    assert count in (13, 14, 15)
    found = shown(data, selection=FrameSelection((0, 7, count - 1)))
    for (pixels, source), index in zip(found, (0, 7, count - 1), strict=True):
        assert source == Source(index, count, 120, 160, source.box)
        assert np.abs(pixels - expected[index]).mean() < 3
    ((_, source),) = shown(data)
    assert source.index == count // 2
    with pytest.raises(InvalidInput, match=f"no frame {count}: it has {count}"):
        shown(data, selection=FrameSelection((count,)))


@pytest.mark.parametrize(
    ("syntax", "name"), [(MPEG2MPML, "MPEG2"), (MPEG4HP41, "MPEG-4 AVC/H.264"), (HEVCMP51, "HEVC/H.265")]
)
@pytest.mark.parametrize("stream", [b"\0" * 64, b"\0\0\0\x18ftypisom" + bytes(200)])
def test_a_video_that_is_none_is_named_by_its_encoding(syntax: UID, name: str, stream: bytes) -> None:
    with pytest.raises(UserError, match=name) as refused:
        one(with_frames([stream], syntax, "YBR_PARTIAL_420", (120, 160)))
    assert "damaged" not in str(refused.value)


def test_videos_without_their_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(NotPossibleHere, match=r"MPEG-4 AVC/H.264.*H.264 video.*pip install av"):
        one(with_frames([b"\0\0\0\x18ftypisom" + bytes(200)], MPEG4HP41, "YBR_PARTIAL_420", (120, 160)))


NOT_SHOWN = {"MR_truncated.dcm": "no frame is whole", "JPEG2000-embedded-sequence-delimiter.dcm": "JPEG 2000 data of"}
WITHOUT_PIXELS = ("nested_priv_SQ.dcm", "meta_missing_tsyntax.dcm", "no_meta.dcm")
NO_IMAGE = "without an image|lacks the DICOM attribute"


@pytest.mark.parametrize(
    "path", sorted(Path(pydicom.__file__).parent.glob("data/test_files/*.dcm")), ids=lambda p: p.name
)
def test_every_file_in_pydicom_is_shown_or_refused_by_name(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = path.read_bytes()
    holds_image = b"\xe0\x7f\x10\0" in data or b"\x7f\xe0\0\x10" in data or path.name == "image_dfl.dcm"
    if path.name in NOT_SHOWN or not holds_image or path.name in WITHOUT_PIXELS:
        with pytest.raises(InvalidInput, match=NOT_SHOWN.get(path.name, NO_IMAGE)):
            one(data)
        return
    assert one(data).std() > 0.5
    assert capfd.readouterr().err == "", "pydicom's own warnings stay out of the log"
