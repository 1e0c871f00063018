"""Read the study that the console offers to try (`--console-study`), before a bundle is loaded; needs none of the door's libraries."""

from __future__ import annotations

from pathlib import Path

from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.formats.media_types import sniff
from echovlm_edge.runtime.formats.video_formats import HEAD_BYTES
from echovlm_edge.runtime.serving.http.exchange.door_options import StudyFile

MOST_BYTES = 64 << 20  # of all files together


def read_study(folder: Path) -> tuple[StudyFile, ...]:
    """Read the image files of a folder, in the order of their names; others are passed over.

    Raises:
        NotPossibleHere: there is none, they are too large, or one cannot be read.
    """
    try:
        read = [StudyFile(path.name, path.read_bytes()) for path in sorted(folder.iterdir()) if path.is_file()]
    except OSError as error:
        raise NotPossibleHere(f"The study {error.filename or folder} cannot be read ({error.strerror}).") from None
    study = tuple(file for file in read if sniff(file.data[:HEAD_BYTES]))
    if not study:
        raise NotPossibleHere(f"{folder} has no image file: name a folder of DICOM, PNG or JPEG files.")
    if sum(len(file.data) for file in study) > MOST_BYTES:
        raise NotPossibleHere(f"The files in {folder} have more than {MOST_BYTES >> 20} MB: name a smaller study.")
    return study
