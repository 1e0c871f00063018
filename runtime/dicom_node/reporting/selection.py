"""Choose which pictures of a study the model is shown: pure functions, in order of arrival.

- A still is shown when it comes, so that the model reads it at once, unless it looks like one that is shown already, or the pictures or
  the context are used up.
- Cines wait, and share what the stills leave: one frame each in order of arrival, then more, evenly spaced, up to a limit. One frame is
  the representative one, or the middle one.
- B-mode, colour and dual views are cropped to their regions; a spectrum or an M-mode trace is the picture, so its whole frame is kept.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydicom.dataset import Dataset

from echovlm_edge.runtime.contracts.fingerprint import distance
from echovlm_edge.runtime.contracts.request import FrameSelection
from echovlm_edge.runtime.dicom_node.receiving.header import ENHANCED_VOLUME
from echovlm_edge.runtime.formats.dicom_attributes import items, whole

# RegionSpatialFormat, PS3.3 C.8.5.5.1.1.
M_MODE, SPECTRAL, WAVE_FORM = 2, 3, 4


class Outcome(enum.StrEnum):
    """What was decided about an instance."""

    SHOWN = "shown"
    NEAR_DUPLICATE = "near-duplicate"  # of a picture that is shown
    NO_ROOM = "no room"  # the pictures or the context are used up
    REFUSED = "refused"  # by the server, which says why
    OTHER_PATIENT = "other patient"  # than the first instance that states one


@dataclass(frozen=True)
class SelectionLimits:
    """How much a report is about.

    Attributes:
        pictures: of one report.
        tokens: of the context for the study's pictures; the rest is for the prompt and the text.
        frames_per_cine: at most.
        near_duplicate_bits: in how many of a fingerprint's 256 bits a near-duplicate may differ; below 0 nothing is one.
    """

    pictures: int
    tokens: int
    frames_per_cine: int
    near_duplicate_bits: int


@dataclass(frozen=True)
class ShownStill:
    """A still that the model is shown: its instance's id, and its fingerprint."""

    id: int
    fingerprint: bytes = field(repr=False)


@dataclass(frozen=True)
class Verdict:
    """A decision about a still; `like` is the id of the picture that it is a near-duplicate of, 0 for none."""

    outcome: Outcome
    like: int = 0


def judge_still(fingerprint: bytes, tokens: int, shown: Sequence[ShownStill], limits: SelectionLimits) -> Verdict:
    """Decide about a still that the server has just decoded.

    Args:
        fingerprint: of the picture; empty if the server gave none.
        tokens: of the context that the study takes with it.
        shown: the stills before it that are shown.
        limits: of the report.
    """
    for before in shown:
        alike = fingerprint and before.fingerprint
        if alike and distance(fingerprint, before.fingerprint) <= limits.near_duplicate_bits:
            return Verdict(Outcome.NEAR_DUPLICATE, before.id)
    if len(shown) >= limits.pictures or tokens > limits.tokens:
        return Verdict(Outcome.NO_ROOM)
    return Verdict(Outcome.SHOWN)


def strangers(patients: Mapping[int, str]) -> frozenset[int]:
    """Return the ids of the instances that state another PatientID than the first that states one; ids are in order of arrival."""
    stated = {id: name for id, patient in sorted(patients.items()) if (name := patient.strip(" \0\t\r\n"))}
    first = next(iter(stated.values()), "")
    return frozenset(id for id, patient in stated.items() if patient != first)


@dataclass(frozen=True)
class Cine:
    """A cine: how many frames it states, and whether it names one that represents it."""

    frames: int
    has_representative: bool
    is_volume: bool = False


def cine_of(header: Dataset, sop_class: str) -> Cine:
    """Read what the choice needs of a cine's header."""
    frames = whole(header, "NumberOfFrames") or 1
    representative = whole(header, "RepresentativeFrameNumber") or 0
    return Cine(frames, 1 <= representative <= frames, sop_class == ENHANCED_VOLUME)


def choose_cines(cines: Sequence[Cine], pictures_left: int, limits: SelectionLimits) -> list[int]:
    """Decide how many frames of each cine are shown: 0 for none, 1 for its representative or middle one, more evenly spaced.

    A cine that names a representative frame, and a volume, give one. The others share what is left once each has one.
    """
    counts = [0] * len(cines)
    left = max(0, pictures_left)
    for _ in range(limits.frames_per_cine):
        for place, cine in enumerate(cines):
            most = 1 if cine.has_representative or cine.is_volume else min(cine.frames, limits.frames_per_cine)
            if left and counts[place] < max(1, most):
                counts[place] += 1
                left -= 1
    return counts


def frames_of(count: int) -> FrameSelection:
    """Return the selection for that many frames of a cine."""
    return FrameSelection() if count <= 1 else FrameSelection(evenly_spaced=count)


def keeps_whole_frame(header: Dataset) -> bool:
    """Tell whether a frame is shown whole: it declares a spectrum, a trace or a wave form."""
    kinds = {whole(region, "RegionSpatialFormat") for region in items(header, "SequenceOfUltrasoundRegions")}
    return bool(kinds & {M_MODE, SPECTRAL, WAVE_FORM})
