"""A frame's source as JSON between a decoding process and the server, which validates all of it."""

from __future__ import annotations

import math
from typing import Any

from echovlm_edge.runtime.contracts.request import Box, Examination, Source, Window

MOST_NOTES, NOTE_CHARACTERS = 16, 300
SIDES, BODY_PART_CHARACTERS = ("", "left", "right", "both"), 16  # a code string's, PS3.5 6.2


def described(source: Source) -> list[Any]:
    """Convert a source to JSON values."""
    return [
        *(source.index, source.count, source.height, source.width),
        *(source.box, source.window, source.notes),
        [source.examination.laterality, source.examination.body_part, source.examination.reach_mm],
    ]


def believed(said: Any) -> Source:
    """Validate the JSON values of `described`, and convert them back.

    Raises:
        ValueError, TypeError: they have another form, or contradict each other.
    """
    index, count, height, width, box, window, notes, examination = said
    kept = Box(*map(_count, box))
    if not (0 <= _count(index) < _count(count) and kept.right <= _count(width) and kept.bottom <= _count(height)):
        raise ValueError("no frame has such a place")
    if kept.left >= kept.right or kept.top >= kept.bottom:
        raise ValueError("nothing would be left of the frame")
    shown = None if window is None else Window(*map(_finite, window))
    if len(notes) > MOST_NOTES:
        raise ValueError("so many notes are not made")
    lines = tuple(one_line(note, NOTE_CHARACTERS) for note in notes)
    return Source(index, count, height, width, kept, shown, lines, _examination(*examination))


def _examination(laterality: Any, body_part: Any, reach_mm: Any) -> Examination:
    if laterality not in SIDES:
        raise ValueError("no side is like that")
    reach = None if reach_mm is None else _finite(reach_mm)
    return Examination(laterality, one_line(body_part, BODY_PART_CHARACTERS), reach)


def one_line(said: object, characters: int) -> str:
    """Make a process's text safe to show: printable, on one line, of at most `characters`."""
    return "".join(character if character.isprintable() else " " for character in str(said)[:characters])


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise ValueError("no count is like that")
    return value


def _finite(value: Any) -> float:
    if not math.isfinite(value):
        raise ValueError("no window is like that")
    return float(value)
