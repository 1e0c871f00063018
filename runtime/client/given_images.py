"""Turn the images that a caller gives (paths, folders, `cine.dcm@0,5`, bytes) into the images that are sent."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from echovlm_edge.runtime.client.image_folder import find_images
from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.contracts.image_path import ImagePath, SentImage, read_image
from echovlm_edge.runtime.contracts.request import FrameSelection, ImageInput

GivenImage: TypeAlias = "str | os.PathLike[str] | bytes | ImageInput | ImagePath"
GivenImages: TypeAlias = "GivenImage | Iterable[GivenImage]"
_FRAMES = re.compile(r"(?P<path>.+)@(?P<frames>\d+(,\d+)*)", re.DOTALL)


@dataclass(frozen=True)
class ImagesToSend:
    """Images in order.

    Attributes:
        images: one for each file that is sent.
        skipped: files of the folders that are no images.
    """

    images: tuple[SentImage, ...]
    skipped: int = 0


def images_to_send(given: GivenImages, selection: FrameSelection, crop_to_regions: bool) -> ImagesToSend:
    """List the images to send; a folder or DICOMDIR is replaced by the images in it.

    Args:
        given: one or several: a path, `PATH@0,5` for frames of that file alone, a file's bytes, or an image that has its own
            selection. `a@1` means the file of that name if there is one.
        selection: frames of each cine that has no selection of its own.
        crop_to_regions: keep only the B-mode regions that a DICOM file declares.

    Raises:
        InvalidInput: a path cannot be read, or a folder holds no image.
    """
    found: list[SentImage | tuple[Path, FrameSelection]] = []
    skipped = 0
    for number, one in enumerate(_listed(given), 1):
        if isinstance(one, (ImageInput, ImagePath)):
            found.append(one)
        elif isinstance(one, bytes):
            found.append(ImageInput(one, "", f"image {number}", selection, crop_to_regions))
        else:
            path, own = _path_and_frames(one)
            inside = find_images(path)
            found += [(file, own or selection) for file in inside.paths]
            skipped += inside.skipped
    alone = Counter(one[0].name for one in found if isinstance(one, tuple))
    images = tuple(
        _at_path(*one, alone[one[0].name] == 1, crop_to_regions) if isinstance(one, tuple) else one for one in found
    )
    return ImagesToSend(images, skipped)


def _listed(given: GivenImages) -> Sequence[GivenImage]:
    """Return the images as a list, also where a single one is given."""
    if isinstance(given, (str, os.PathLike, bytes, ImageInput, ImagePath)):
        return [given]
    return list(given)


def _path_and_frames(given: object) -> tuple[Path, FrameSelection | None]:
    if not isinstance(given, (str, os.PathLike)):
        raise InvalidInput(f"An image is a path, bytes, ImageInput or ImagePath, not {type(given).__name__}.")
    path = Path(given)
    chosen = None if path.exists() else _FRAMES.fullmatch(str(path))
    if not chosen:
        return path, None
    return Path(chosen["path"]), FrameSelection(tuple(map(int, chosen["frames"].split(","))))


def _at_path(path: Path, selection: FrameSelection, alone: bool, crop_to_regions: bool) -> SentImage:
    if path.is_file():
        return ImagePath(path, "", path.name if alone else str(path), selection, crop_to_regions)
    # A pipe, which can be read only once, or a path that does not exist.
    return read_image(path, selection, crop_to_regions)
