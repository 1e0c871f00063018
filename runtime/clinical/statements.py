"""What documents and the command say besides the text: who wrote it, and the notes about it and the pictures that the model was shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from echovlm.v1 import report_pb2 as pb


def authorship(result: pb.Result, request_id: str) -> str:
    """Name the model, the bundle, and the call as the server's log does; `request_id` is empty where the server gives none."""
    call = f", request {request_id}" if request_id else ""
    return f"Written by {result.model}, bundle {result.bundle_id}{call}."


def notes_by_file(
    pictures: Sequence[pb.Picture], file_of: Callable[[pb.Picture], str], first_frame: int = 0
) -> list[str]:
    """List each note once for a file, with the frames that it is about unless it is about all that were shown.

    Args:
        pictures: those of a result.
        file_of: names the file that a picture is of.
        first_frame: the number of a file's first frame: 0, or 1 as in DICOM.
    """
    frames: dict[str, list[int]] = {}
    noted: dict[tuple[str, str], list[int]] = {}
    for picture in pictures:
        file, frame = file_of(picture), picture.frame + first_frame
        frames.setdefault(file, []).append(frame)
        for note in picture.notes:
            noted.setdefault((file, note), []).append(frame)
    lines = []
    for (file, note), about in noted.items():
        which = "" if len(about) == len(frames[file]) else f", frame {', '.join(map(str, about))}"
        lines.append(f"{file}{which}: {note}")
    return lines


def notes_of_document(result: pb.Result) -> list[str]:
    """List the notes about a text and its pictures for a document, which names no file.

    Images are named by their place in the call, and their frames counted from 1 as in DICOM.
    """
    of_pictures = notes_by_file(result.pictures, lambda picture: f"Image {picture.image or picture.study_image}", 1)
    return [*result.notes, *of_pictures]
