"""Videos: every kind gives the frames that FFmpeg's program shows, one is found without the others, and no file does harm."""

from __future__ import annotations

import builtins
import io
import struct
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.contracts.memory_file import MemoryFile
from echovlm_edge.runtime.contracts.request import FrameSelection, ImageInput, OriginalFrames
from echovlm_edge.runtime.imaging import video
from echovlm_edge.runtime.imaging.image_file import ImageLimits, decode_image, measure_image
from echovlm_edge.runtime.imaging.preprocess import fit
from tests.support.decoding import RESOLUTION
from tests.support.video_files import KINDS, LOSSLESS, Pixels, by_ffmpeg, encoded, moving

COUNT = 15
LEVELS = 3  # FFmpeg's versions differ by so much between YCbCr and RGB


def whole(data: bytes) -> list[Pixels]:
    """All frames, in order."""
    found = video.measure(io.BytesIO(data), "image 1")
    return [pixels for _, pixels in video.decode(io.BytesIO(data), "image 1", range(found.count))]


def noisy(count: int, kind: str) -> list[Pixels]:
    """Frames whose codes are much longer than a container's own bytes."""
    frames = moving(count, 96, 128, grey=kind.endswith("grey"))
    noise = np.random.default_rng(1).integers(0, 20, (count, 96, 128, 1), dtype=np.uint8)
    return [frame + noise[number] for number, frame in enumerate(frames)]


def count_of(kind: str) -> int:
    """Frames that are given: a raw HEVC stream's last one, and what is shown after it, cannot be known to be whole."""
    return COUNT - 2 if kind == "hevc stream" else COUNT


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return {kind: encoded(kind, moving(COUNT, grey=kind.endswith("grey"))) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_it_shows_what_ffmpeg_shows(kind: str, files: dict[str, bytes], tmp_path: Path) -> None:
    frames = whole(files[kind])
    expected = by_ffmpeg(files[kind], tmp_path, 48, 64)
    assert len(expected) == COUNT and len(frames) == count_of(kind)
    tolerance = 0 if kind in LOSSLESS else LEVELS
    assert max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(frames, expected, strict=False)) <= tolerance


@pytest.mark.parametrize("kind", LOSSLESS)
def test_what_was_lossless_is_what_was_encoded(kind: str, files: dict[str, bytes]) -> None:
    assert np.array_equal(whole(files[kind]), moving(COUNT, grey=kind.endswith("grey")))


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_is_the_same_alone_and_in_any_order(kind: str, files: dict[str, bytes]) -> None:
    frames, data = whole(files[kind]), files[kind]

    @settings(max_examples=15, deadline=None)
    @given(st.lists(st.integers(0, count_of(kind) - 1), min_size=1, max_size=5))
    def same(indices: list[int]) -> None:
        found = list(video.decode(io.BytesIO(data), "image 1", indices))
        assert [index for index, _ in found] == indices
        assert all(np.array_equal(pixels, frames[index]) for index, pixels in found)

    same()


@pytest.mark.parametrize("kind", KINDS)
def test_the_middle_frame_is_the_default_and_says_where_it_is_from(kind: str, files: dict[str, bytes]) -> None:
    media_type = KINDS[kind][0]
    for data in (files[kind], MemoryFile.of([files[kind]])):
        image = ImageInput(data, media_type)
        (frame,) = decode_image(image, finish=partial(fit, settings=RESOLUTION))
        middle = count_of(kind) // 2
        assert frame.name == f"image 1, frame {middle}" and frame.source
        assert (frame.source.index, frame.source.count) == (middle, count_of(kind))
        assert bool(frame.source.notes) == (count_of(kind) < COUNT)
        assert (frame.source.height, frame.source.width, frame.source.box) == (48, 64, (0, 0, 64, 48))
        assert measure_image(image, RESOLUTION).sizes == (frame.pixels.shape[:2],)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith(("mp4", "quicktime"))])
def test_a_video_that_was_cut_off_gives_the_frames_that_it_has(kind: str) -> None:
    data = encoded(kind, noisy(40, kind), b="4M")
    original = whole(data)
    counts = []
    for fraction in (0.4, 0.7, 0.95):
        cut = data[: int(len(data) * fraction)]
        frames = whole(cut)
        assert video.measure(io.BytesIO(cut), "image 1").count == len(frames)
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(frames[:-3], original, strict=False))
        counts.append(len(frames))
    assert 1 <= counts[0] < counts[1] < counts[2] <= 40


@pytest.mark.parametrize("kind", ["mp4 h264", "mp4 hevc", "quicktime mjpeg"])
def test_one_that_lacks_its_index_is_refused(kind: str) -> None:
    """They have it at their end."""
    data = encoded(kind, noisy(5, kind))
    for fraction in (0.1, 0.5, 0.8):
        with pytest.raises(InvalidInput, match=r"^image 1 is (truncated or )?damaged"):
            measure_image(ImageInput(data[: int(len(data) * fraction)]), RESOLUTION)


@pytest.mark.parametrize("fraction", [0.4, 0.7, 0.95])
def test_one_with_its_index_first_gives_the_frames_that_it_has(fraction: float) -> None:
    data = encoded("mp4 h264", noisy(40, "mp4 h264"), container={"movflags": "faststart"})
    cut = data[: int(len(data) * fraction)]
    frames = whole(cut)
    assert video.measure(io.BytesIO(cut), "image 1").count == len(frames) and 1 <= len(frames) < 40
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(frames[:-3], whole(data), strict=False))


def damaged(data: bytes, at: float) -> bytes:
    """A few hundred bytes of noise in it."""
    start = int(len(data) * at)
    noise = np.random.default_rng(0).integers(0, 256, 300, dtype=np.uint8).tobytes()
    return data[:start] + noise + data[start + 300 :]


def test_damage_ends_a_cine_and_says_so() -> None:
    """The middle is behind the damage: the middle of what is before it is shown."""
    data = damaged(encoded("h264 stream", moving(60, 96, 128), g="60"), 0.3)
    found = video.measure(io.BytesIO(data), "image 1")
    assert 1 < found.count < 60
    assert len(whole(data)) == found.count
    mp4 = damaged(encoded("mp4 h264", moving(60, 96, 128), g="60", bf="0"), 0.3)
    (frame,) = decode_image(ImageInput(mp4))
    assert frame.source and frame.source.count == 60
    (note,) = frame.source.notes
    there = int(note.split()[0])
    assert note == f"{there} of 60 frames are there." and frame.source.index == there // 2
    with pytest.raises(InvalidInput, match=rf"^image 1 .*frame 59 cannot be decoded, its first {there} are whole\.$"):
        decode_image(ImageInput(mp4, selection=FrameSelection((0, 59))))


def turned(data: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """An MP4 with another display matrix in its track header."""
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    return data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :]


@pytest.mark.parametrize(
    ("matrix", "upright"),
    [
        ((1, 0, 0, 1), lambda pixels: pixels),
        ((0, 1, -1, 0), lambda pixels: np.rot90(pixels, -1)),
        ((-1, 0, 0, -1), lambda pixels: np.rot90(pixels, 2)),
        ((0, -1, 1, 0), lambda pixels: np.rot90(pixels)),
        ((-1, 0, 0, 1), lambda pixels: pixels[:, ::-1]),
        ((1, 0, 0, -1), lambda pixels: pixels[::-1]),
        ((0, 1, 1, 0), lambda pixels: pixels.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2)),
    ],
    ids=["upright", "90", "180", "270", "mirrored", "flipped", "transposed", "transversed"],
)
def test_a_turned_video_is_turned_back(
    matrix: tuple[int, int, int, int], upright: object, files: dict[str, bytes]
) -> None:
    data = turned(files["mp4 h264"], matrix)
    expected = upright(whole(files["mp4 h264"])[4])  # type: ignore[operator]
    (frame,) = decode_image(ImageInput(data, selection=FrameSelection((4,))))
    assert np.array_equal(frame.pixels, expected)
    assert frame.source and (frame.source.height, frame.source.width) == expected.shape[:2]
    assert measure_image(ImageInput(data), RESOLUTION).sizes[0] == fit(frame.pixels, RESOLUTION).shape[:2]


def test_a_quarter_turn_is_ffmpegs(files: dict[str, bytes], tmp_path: Path) -> None:
    data = turned(files["mp4 h264"], (0, 1, -1, 0))
    expected = by_ffmpeg(data, tmp_path, 64, 48)
    assert max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(whole(data), expected, strict=True)) <= LEVELS


@pytest.mark.parametrize(("aspect", "size"), [((4, 3), (48, 85)), ((3, 4), (64, 64)), ((1, 50), (48, 64))])
def test_pixels_become_square_with_a_note(aspect: tuple[int, int], size: tuple[int, int]) -> None:
    data = encoded("mp4 h264", moving(3), Fraction(*aspect))
    (frame,) = decode_image(ImageInput(data))
    assert frame.pixels.shape[:2] == size
    stretched = f"Its pixels are {aspect[0]}:{aspect[1]}, wide to high: it was stretched to square ones."
    assert frame.source and frame.source.notes == ((stretched,) if size != (48, 64) else ())
    ((_, stored),) = video.decode(io.BytesIO(data), "image 1", [1], square_pixels=False)
    assert stored.shape[:2] == (48, 64)


@pytest.mark.parametrize("colours", [{}, {"colorspace": "bt709"}, {"color_range": "pc"}])
def test_colours_are_as_the_stream_says(colours: dict[str, str], tmp_path: Path) -> None:
    data = encoded("h264 stream", moving(4), **colours)
    expected = by_ffmpeg(data, tmp_path, 48, 64)
    assert max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(whole(data), expected, strict=True)) <= LEVELS


def test_fields_keep_their_own_colours(tmp_path: Path) -> None:
    data = encoded("h264 stream", moving(4), **{"x264-params": "interlaced=1"})
    expected = by_ffmpeg(data, tmp_path, 48, 64, "-vf", "scale=interl=1")
    assert max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(whole(data), expected, strict=True)) <= LEVELS


def test_without_the_decoder_the_video_is_named(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def missing(name: str, *arguments: object, **fields: object) -> object:
        if name == "av":
            raise ImportError
        return imported(name, *arguments, **fields)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", missing)
    expected = {
        "h264 stream": "H.264",
        "hevc stream": "HEVC",
        "mpeg program": "MPEG-2",
        "mp4 hevc": "MP4 or QuickTime",
        "avi raw": "AVI",
    }
    for kind, named in expected.items():
        sentence = rf"^image 1 is {named} video: install the decoder on the server \(pip install av\)\.$"
        with pytest.raises(NotPossibleHere, match=sentence):
            measure_image(ImageInput(files[kind]), RESOLUTION)
    with pytest.raises(NotPossibleHere, match=r"is H\.264 video"):
        video.measure(io.BytesIO(files["mpeg transport"]), "image 1", codec="H.264")


def test_a_codec_that_is_not_read_is_named() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as container:
        stream = container.add_stream("flv", rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for frame in moving(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    with pytest.raises(NotPossibleHere, match=r"^image 1 is video that this server does not decode \(FLV\)\.$"):
        measure_image(ImageInput(file.getvalue()), RESOLUTION)


def test_sound_alone_is_no_video() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(InvalidInput, match="image 1 is damaged, or a video file without video"):
        measure_image(ImageInput(file.getvalue()), RESOLUTION)


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_one_is_refused_before_it_is_decoded(kind: str, files: dict[str, bytes]) -> None:
    with pytest.raises(InvalidInput, match=r"64 x 48 pixels, more than 1,000 in all"):
        measure_image(ImageInput(files[kind]), RESOLUTION, ImageLimits(max_pixels=1000))
    with pytest.raises(InvalidInput, match=r"64 x 48 pixels, more than 1,000 in all"):
        decode_image(ImageInput(files[kind]), ImageLimits(max_pixels=1000))


@pytest.mark.parametrize(
    "data",
    [
        b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/a.ts\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"<?xml version='1.0'?><MPD></MPD>",
        b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\n",
    ],
    ids=["hls", "concat", "dash", "sdp"],
)
def test_a_list_of_other_files_is_no_video(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="of no known kind"):
        measure_image(ImageInput(data), RESOLUTION)


def test_a_shortened_cine_keeps_the_numbers_of_the_original(files: dict[str, bytes]) -> None:
    numbers = tuple(range(100, 100 + 2 * COUNT, 2))
    image = ImageInput(files["avi ffv1"], original=OriginalFrames(numbers, 400))
    frames = decode_image(image)
    assert [frame.source.index for frame in frames if frame.source] == list(numbers)
    assert {frame.source.count for frame in frames if frame.source} == {400}
    assert frames[1].name == "image 1, frame 102"
    assert len(measure_image(image, RESOLUTION).sizes) == COUNT


@pytest.mark.parametrize(
    ("numbers", "count", "sentence"),
    [
        ((), 9, "outside its 9 original frames"),
        ((8, 9), 9, "outside its 9 original frames"),
        ((-1,), 9, "outside its 9 original frames"),
        ((0, 1), 9, "was shortened to 2 frames, and has 15"),
        (tuple(range(20)), 99, "has"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(
    numbers: tuple[int, ...], count: int, sentence: str, files: dict[str, bytes]
) -> None:
    image = ImageInput(files["avi ffv1"], original=OriginalFrames(numbers, count))
    for ask in (partial(measure_image, image, RESOLUTION), partial(decode_image, image)):
        with pytest.raises(InvalidInput, match=sentence):
            ask()
