"""What a caller may give as images, and which frames of which file that means."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echovlm_edge.runtime.client.given_images import GivenImage, images_to_send
from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.contracts.image_path import ImagePath, read_image
from echovlm_edge.runtime.contracts.request import FrameSelection, ImageInput
from tests.support.dicom_files import png

MIDDLE = FrameSelection()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name in ("a.png", "b@2.png", "c.png@1", "sub/a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(png(8, 8))
    return folder


def test_one_alone_is_a_list_of_one(folder: Path) -> None:
    path = folder / "a.png"
    alone: list[GivenImage] = [path, str(path), png(8, 8), ImageInput(b"x"), ImagePath(path)]
    for one in alone:
        assert images_to_send(one, MIDDLE, True) == images_to_send([one], MIDDLE, True)
        assert len(images_to_send(one, MIDDLE, True).images) == 1


def test_bytes_are_named_by_their_place(folder: Path) -> None:
    images = images_to_send([folder / "a.png", b"data"], MIDDLE, False).images
    assert [image.name for image in images] == ["a.png", "image 2"]
    assert not any(image.crop_to_regions for image in images)


def test_what_says_its_own_frames_keeps_them(folder: Path) -> None:
    own = ImagePath(folder / "a.png", selection=FrameSelection((7,)))
    images = images_to_send([own, f"{folder}/a.png@0,5", folder / "a.png"], FrameSelection((1,)), True).images
    assert [image.selection.indices for image in images] == [(7,), (0, 5), (1,)]


@given(frames=st.lists(st.integers(0, 10**6), min_size=1, max_size=8))
def test_frames_of_one_file(folder: Path, frames: list[int]) -> None:
    (image,) = images_to_send(f"{folder}/a.png@{','.join(map(str, frames))}", MIDDLE, True).images
    assert isinstance(image, ImagePath) and image.path == folder / "a.png"
    assert image.selection.indices == tuple(frames)


def test_a_file_whose_name_holds_the_sign(folder: Path) -> None:
    for given_, indices in (("b@2.png", ()), ("c.png@1", ()), ("b@2.png@3", (3,)), ("c.png@1@0,2", (0, 2))):
        (image,) = images_to_send(folder / given_, MIDDLE, True).images
        assert image.selection.indices == indices
        assert isinstance(image, ImagePath) and image.path.exists()


def test_frames_of_every_cine_of_a_folder(folder: Path) -> None:
    images = images_to_send(f"{folder}/sub@4", MIDDLE, True).images
    assert [(image.name, image.selection.indices) for image in images] == [("a.png", (4,))]


@pytest.mark.parametrize("name", ["missing.png", "missing.png@1", "a.png@", "a.png@x", "a.png@1,", "a.png@-1"])
def test_what_is_not_there_is_one_sentence(folder: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        images_to_send(folder / name, MIDDLE, True)


def test_what_is_no_image_at_all_is_named() -> None:
    with pytest.raises(InvalidInput, match="not int"):
        images_to_send([3], MIDDLE, True)  # type: ignore[list-item]


def test_files_of_one_name_are_told_apart(folder: Path) -> None:
    images = images_to_send([folder / "a.png", folder / "sub"], MIDDLE, True).images
    assert [image.name for image in images] == [str(folder / "a.png"), str(folder / "sub" / "a.png")]


def test_a_device_that_never_ends_is_not_read_for_ever() -> None:
    with pytest.raises(InvalidInput, match=r"^The image /dev/zero has more than 256 MB: give a smaller one"):
        read_image(Path("/dev/zero"), FrameSelection(), True)
