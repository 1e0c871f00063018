"""Which frames of a cine are read."""

from __future__ import annotations

from dataclasses import dataclass

from pydicom.dataset import Dataset

from echovlm_edge.runtime.errors import InvalidInput
from echovlm_edge.runtime.imaging.dicom.attributes import whole
from echovlm_edge.runtime.request import FrameSelection


@dataclass(frozen=True)
class Cine:
    """The frames that there are to choose from, counted from 0.

    Attributes:
        count: frames that are there.
        stated: frames that the file says there are.
        default: the one that is read where none is asked for.
        first, last: evenly spaced frames are spread from here to there.
    """

    count: int
    stated: int
    default: int
    first: int
    last: int


def plain_cine(count: int) -> Cine:
    """A cine that says nothing but how many frames it has: the default is its middle."""
    return Cine(count, count, count // 2, 0, count - 1)


def read_cine(dataset: Dataset, count: int, stated: int) -> Cine:
    """A cine by its header: RepresentativeFrameNumber (PS3.3 C.7.6.6), StartTrim and StopTrim (C.7.6.5), counted from 1 there.

    Values that cannot be meant are ignored. Without them the default is the middle between the trims, or of all that is there.

    Args:
        dataset: the header.
        count: frames that are there, at least 1.
        stated: frames that the header says there are.
    """
    start, stop = whole(dataset, "StartTrim") or 1, whole(dataset, "StopTrim") or stated
    if not 1 <= start <= stop <= stated or start > count:
        start, stop = 1, count
    first, last = start - 1, min(stop, count) - 1
    representative = whole(dataset, "RepresentativeFrameNumber") or 0
    default = representative - 1 if 1 <= representative <= count else first + (last - first + 1) // 2
    return Cine(count, stated, default, first, last)


def choose_frames(name: str, cine: Cine, selection: FrameSelection, max_frames: int) -> list[int]:
    """The 0-based frames that a selection means in a cine.

    Raises:
        InvalidInput: an index outside the file, or more frames than `max_frames`.
    """
    if selection.indices:
        for index in selection.indices:
            if not 0 <= index < cine.count:
                there = f"{cine.count}" if cine.count == cine.stated else f"{cine.count} of the {cine.stated:,} it states"
                raise InvalidInput(f"{name} has no frame {index}: it has {there}, counted from 0.")
        chosen = list(selection.indices)
    elif selection.evenly_spaced > 1:
        span = cine.last - cine.first
        wanted = min(selection.evenly_spaced, span + 1)
        chosen = [cine.first + round(step * span / (wanted - 1)) for step in range(wanted)] if span else [cine.first]
    else:
        chosen = [cine.default]
    if len(chosen) > max_frames:
        raise InvalidInput(f"{name}: {len(chosen)} frames were asked for, at most {max_frames} are read from a file.")
    return chosen


def interruption(cine: Cine) -> str:
    """What to say of a cine that has fewer frames than it states; empty where it has all."""
    if cine.count == cine.stated:
        return ""
    return f"{cine.count} of {cine.stated:,} frames are there."
