"""Choose which frames of a cine are read."""

from __future__ import annotations

from dataclasses import dataclass

from pydicom.dataset import Dataset

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.contracts.request import FrameSelection, ImageInput
from echovlm_edge.runtime.formats.dicom_attributes import whole


@dataclass(frozen=True)
class Cine:
    """What a cine's header states about its frames, counted from 0.

    Attributes:
        stated: how many frames it states.
        default: the frame that is read if none is requested.
        first, last: the range over which evenly spaced frames are spread.
    """

    stated: int
    default: int
    first: int
    last: int


def read_cine(dataset: Dataset, count: int, stated: int) -> Cine:
    """Read a cine's header: RepresentativeFrameNumber (PS3.3 C.7.6.6), StartTrim and StopTrim (C.7.6.5), which count from 1.

    Implausible values are ignored. Without a RepresentativeFrameNumber the default is the middle between the trims, or of all frames.

    Args:
        dataset: the header.
        count: frames that the file contains, at least 1.
        stated: frames that the header states.
    """
    start, stop = whole(dataset, "StartTrim") or 1, whole(dataset, "StopTrim") or stated
    if not 1 <= start <= stop <= stated or start > count:
        start, stop = 1, count
    first, last = start - 1, min(stop, count) - 1
    representative = whole(dataset, "RepresentativeFrameNumber") or 0
    default = representative - 1 if 1 <= representative <= count else first + (last - first + 1) // 2
    return Cine(stated, default, first, last)


def choose_frames(
    name: str, count: int, selection: FrameSelection, max_frames: int, cine: Cine | None = None
) -> list[int]:
    """Return the 0-based frames that a selection means in a file.

    Args:
        name: what error messages call the file.
        count: complete frames that the file contains.
        selection: the requested frames.
        max_frames: the most frames that are read.
        cine: the file's own statements (`read_cine`); without them the default is the middle frame, and the range is all frames.

    Raises:
        InvalidInput: an index outside the file, or more frames than `max_frames`.
    """
    cine = cine or Cine(count, count // 2, 0, count - 1)
    if selection.indices:
        for index in selection.indices:
            if not 0 <= index < count:
                there = f"{count}" if count == cine.stated else f"{count} of the {cine.stated:,} that it states"
                raise InvalidInput(f"{name} has no frame {index}: it has {there}, counted from 0.")
        chosen = list(selection.indices)
    elif selection.evenly_spaced > 1 and cine.last > cine.first:
        span = cine.last - cine.first
        wanted = min(selection.evenly_spaced, span + 1)
        chosen = [cine.first + round(step * span / (wanted - 1)) for step in range(wanted)]
    else:
        chosen = [cine.default]
    if len(chosen) > max_frames:
        raise InvalidInput(f"{name}: {len(chosen)} frames were asked for, at most {max_frames} are read from a file.")
    return chosen


def frames_to_read(image: ImageInput, count: int, max_frames: int, cine: Cine | None = None) -> list[int]:
    """List the 0-based frames to read: all if the client has shortened the file to the requested frames, otherwise the selected ones.

    Args:
        image: the file, and what is asked of it.
        count: whole frames that are there.
        max_frames: the most that are read.
        cine: see `choose_frames`.

    Raises:
        InvalidInput: see `choose_frames`; or the file was shortened to another number of frames than it has.
    """
    if image.original is None:
        return choose_frames(image.name, count, image.selection, max_frames, cine)
    named = len(image.original.numbers)
    has = cine.stated if cine and named == count else count
    if named != has:
        raise InvalidInput(f"{image.name} was shortened to {named} frames, and has {has}: send those that were chosen.")
    if count > max_frames:
        raise InvalidInput(f"{image.name}: {count} frames were sent, at most {max_frames} are read from a file.")
    return list(range(count))


def interruption(count: int, stated: int) -> str:
    """Return the note about a cine that has fewer frames than it states; empty if it has all."""
    return "" if count == stated else f"{count} of {stated:,} frames are there."
