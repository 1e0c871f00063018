"""An image file on disk as a client sends it: read when it is sent, and only as far as it is needed."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeAlias

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.contracts.request import FrameSelection, ImageInput

MOST_BYTES = 256 << 20  # that are read into memory


@dataclass(frozen=True)
class ImagePath:
    """An image file by its path.

    Args:
        path: of a regular file.
        media_type: of the bytes, such as `application/dicom`, or empty to go by the bytes alone.
        name: what error messages call it; the path itself where it is empty.
        selection: which frames of a cine.
        crop_to_regions: keep only the B-mode regions that a DICOM file declares.
    """

    path: Path
    media_type: str = ""
    name: str = ""
    selection: FrameSelection = field(default_factory=FrameSelection)
    crop_to_regions: bool = True

    def __post_init__(self) -> None:
        """Name the image."""
        if not self.name:
            object.__setattr__(self, "name", str(self.path))

    def open(self) -> BinaryIO:
        """Open the file for reading, from its start.

        Raises:
            InvalidInput: it cannot be read.
        """
        try:
            return self.path.open("rb")
        except OSError as error:
            raise unreadable(self.path, error) from None


SentImage: TypeAlias = ImageInput | ImagePath


def size_of(image: SentImage) -> int:
    """An image's bytes, without reading them.

    Raises:
        InvalidInput: its file cannot be read.
    """
    if isinstance(image, ImageInput):
        return len(image.data)
    with image.open() as file:
        return file.seek(0, io.SEEK_END)


def read_image(path: Path, selection: FrameSelection, crop_to_regions: bool) -> ImageInput:
    """Read a file, or what a pipe delivers, into memory; `ImagePath` is one that is read when it is sent.

    Raises:
        InvalidInput: it cannot be read, or has more than `MOST_BYTES`: a device may never end.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise unreadable(path, error) from None
    if len(data) > MOST_BYTES:
        raise InvalidInput(
            f"The image {path} has more than {MOST_BYTES >> 20} MB: give a smaller one, or a file's path."
        )
    return ImageInput(data, "", path.name, selection, crop_to_regions)


def unreadable(path: Path, error: OSError) -> InvalidInput:
    """The sentence about a file that cannot be read."""
    return InvalidInput(f"The image {path} cannot be read ({error.strerror}): give an image file, or a folder of them.")
