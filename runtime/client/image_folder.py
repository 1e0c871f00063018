"""Find the images of a folder or a DICOMDIR, in the order in which they were taken; other files are counted and left out.

Files are recognised by their first bytes. DICOM files come first, by study, series and instance number; then pictures and videos
by name. Without pydicom, DICOM files are ordered by name too.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.contracts.image_path import unreadable
from echovlm_edge.runtime.formats.media_types import DICOM, TAKEN, sniff
from echovlm_edge.runtime.formats.video_formats import HEAD_BYTES

DICOMDIR = "1.2.840.10008.1.3.10"  # Media Storage Directory Storage
# Only these are read, so that ordering gigabytes takes a moment. Rows tells images from reports and presentation states.
_ORDER = (
    "StudyDate",
    "StudyTime",
    "StudyInstanceUID",
    "SeriesNumber",
    "SeriesInstanceUID",
    "InstanceNumber",
    "AcquisitionTime",
    "ContentTime",
    "Rows",
)


@dataclass(frozen=True)
class FoundImages:
    """The contents of a folder or DICOMDIR.

    Attributes:
        paths: its images, in order.
        skipped: files that are no images.
    """

    paths: tuple[Path, ...]
    skipped: int


def find_images(path: Path) -> FoundImages:
    """List the images that a path stands for: those in a folder and its subfolders, those of a DICOMDIR, or the file itself.

    Hidden files and folders are left out, and links to folders are not followed.

    Raises:
        InvalidInput: it cannot be read, or is a folder or DICOMDIR without images; a file that a DICOMDIR lists is not there.
        NotPossibleHere: reading a DICOMDIR needs pydicom.
    """
    if path.is_dir():
        return _not_empty(f"The folder {path}", _ordered(_files(path)))
    if path.is_file() and sniff(_head(path)) == DICOM and _is_directory(path):
        return _not_empty(f"The DICOMDIR {path}", _listed(path))
    return FoundImages((path,), 0)


def _not_empty(what: str, found: FoundImages) -> FoundImages:
    if not found.paths:
        others = f" ({found.skipped} other {'file' if found.skipped == 1 else 'files'})" if found.skipped else ""
        raise InvalidInput(f"{what} holds no image{others}: give one that holds {TAKEN}.")
    return found


def _files(folder: Path) -> list[Path]:
    """List every regular file in the folder and its subfolders, by name."""

    def refuse(error: OSError) -> None:
        raise unreadable(Path(str(error.filename)), error)

    found = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted((path for path in found if path.is_file()), key=_natural)


def _natural(path: Path) -> list[tuple[list[tuple[int, int, str]], str]]:
    """Return a sort key that orders folder by folder, and numbers in names by their value: image 2 before image 10."""
    return [
        (
            [(0, int(part), "") if part.isdecimal() else (1, 0, part.casefold()) for part in re.split(r"(\d+)", name)],
            name,
        )
        for name in path.parts
    ]


def _ordered(files: Iterable[Path]) -> FoundImages:
    """Pick the images among files that are sorted by name, and count the others; a DICOMDIR is neither."""
    dicom: list[tuple[tuple[Any, ...], Path]] = []
    pictures, skipped = [], 0
    for path in files:
        kind = sniff(_head(path))
        if kind == DICOM and not _is_directory(path):
            place = _place(path)
            dicom += [(place, path)] if place is not None else []
            skipped += place is None
        elif kind and kind != DICOM:
            pictures.append(path)
        else:
            skipped += not kind
    dicom.sort(key=lambda placed: placed[0])  # stable, so that files stay sorted by name where headers say nothing
    return FoundImages((*(path for _, path in dicom), *pictures), skipped)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError as error:
        raise unreadable(path, error) from None


def _place(path: Path) -> tuple[Any, ...] | None:
    """Return the sort key of a DICOM file; None for one that holds no picture."""
    try:
        header = _header(path, _ORDER)
    except ImportError:
        return ()
    except Exception:  # damaged bytes can raise anything in the parser; the server will say what is wrong with the file
        return (True,)
    if "Rows" not in header:
        return None
    texts = {keyword: _text(header, keyword) for keyword in _ORDER}
    return (
        False,
        *(texts["StudyDate"], texts["StudyTime"], texts["StudyInstanceUID"]),
        *(_number(texts["SeriesNumber"]), texts["SeriesInstanceUID"]),
        *(_number(texts["InstanceNumber"]), texts["AcquisitionTime"] or texts["ContentTime"]),
    )


def _number(text: str) -> float:
    """Return the value of an integer string; infinity where there is none, so that it is sorted last."""
    try:
        return int(text)
    except ValueError:
        return math.inf


def _text(header: Any, keyword: str) -> str:
    try:
        return str(header.get(keyword, None) or "")
    except Exception:  # pydicom parses an element at its first use
        return ""


def _header(path: Path, keywords: Sequence[str]) -> Any:
    """Read some elements of a DICOM file and nothing else."""
    import pydicom  # an extra: sending pictures needs no pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=list(keywords))


def _is_directory(path: Path) -> bool:
    """Tell whether a DICOM file is a DICOMDIR; without pydicom by its name, which PS3.10 8.6 prescribes."""
    try:
        return str(_header(path, ()).file_meta.get("MediaStorageSOPClassUID", "")) == DICOMDIR
    except ImportError:
        return path.name.upper() == "DICOMDIR"
    except Exception:
        return False


def _listed(directory: Path) -> FoundImages:
    """List the files that a DICOMDIR lists as images, in its order."""
    try:
        records = _header(directory, ("DirectoryRecordSequence",)).get("DirectoryRecordSequence", None) or ()
        # Each record of an image names a file by folders and name (PS3.3 F.3.2.2); those of patients, studies and series name none.
        listed = [
            (str(record.get("DirectoryRecordType", "")), record.get("ReferencedFileID"))
            for record in records
            if record.get("ReferencedFileID", None)
        ]
    except ImportError:
        raise NotPossibleHere(
            f"{directory} is a DICOMDIR, which is read with pydicom: pip install pydicom, or give the folder."
        ) from None
    except Exception:  # see _place
        raise InvalidInput(f"The DICOMDIR {directory} cannot be read: it is damaged; give the folder.") from None
    images = [_inside(directory, file_id) for kind, file_id in listed if kind == "IMAGE"]
    missing = [path for path in images if not path.is_file()]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InvalidInput(
            f"The DICOMDIR {directory} lists {missing[0]}{others}, which is not there: copy the whole medium, or give its folder."
        )
    return FoundImages(tuple(images), len(listed) - len(images))


def _inside(directory: Path, file_id: Any) -> Path:
    """Return the path that an id names; one outside the DICOMDIR's folder is refused, as the DICOMDIR may be malicious."""
    parts = [file_id] if isinstance(file_id, str) else [str(part) for part in file_id]
    if any(part in ("", ".", "..") or "/" in part or "\\" in part for part in parts):
        raise InvalidInput(f"The DICOMDIR {directory} lists a file outside its folder: give the folder.")
    return directory.parent.joinpath(*parts)
