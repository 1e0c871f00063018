"""The choice of pictures: a table of cases."""

from __future__ import annotations

import pytest
from pydicom.dataset import Dataset

from echovlm_edge.runtime.contracts.request import FrameSelection
from echovlm_edge.runtime.dicom_node.reporting.selection import (
    Cine,
    Outcome,
    SelectionLimits,
    ShownStill,
    Verdict,
    choose_cines,
    frames_of,
    judge_still,
    keeps_whole_frame,
    strangers,
)

LIMITS = SelectionLimits(pictures=3, tokens=100, frames_per_cine=4, near_duplicate_bits=8)
A, NEAR_A, B = bytes(32), bytes([0xFF]) + bytes(31), bytes([0xFF, 1]) + bytes(30)
ONE_OF_MANY, REPRESENTED, VOLUME, SHORT = Cine(90, False), Cine(90, True), Cine(90, False, True), Cine(2, False)


@pytest.mark.parametrize(
    ("fingerprint", "tokens", "shown", "verdict"),
    [
        (A, 10, [], Verdict(Outcome.SHOWN)),
        (A, 10, [A], Verdict(Outcome.NEAR_DUPLICATE, 1)),
        (NEAR_A, 10, [B, A], Verdict(Outcome.NEAR_DUPLICATE, 1)),
        (NEAR_A, 10, [A], Verdict(Outcome.NEAR_DUPLICATE, 1)),
        (B, 10, [A], Verdict(Outcome.SHOWN)),
        (b"", 10, [b""], Verdict(Outcome.SHOWN)),  # an older server gives none
        (B, 101, [A], Verdict(Outcome.NO_ROOM)),
        (B, 100, [A], Verdict(Outcome.SHOWN)),
        (b"\xaa" * 32, 10, [A, B, b"\x55" * 32], Verdict(Outcome.NO_ROOM)),
        (A, 101, [A], Verdict(Outcome.NEAR_DUPLICATE, 1)),
    ],
)
def test_stills(fingerprint: bytes, tokens: int, shown: list[bytes], verdict: Verdict) -> None:
    before = [ShownStill(place, one) for place, one in enumerate(shown, 1)]
    assert judge_still(fingerprint, tokens, before, LIMITS) == verdict


@pytest.mark.parametrize(
    ("cines", "left", "counts"),
    [
        ([], 5, []),
        ([ONE_OF_MANY], 0, [0]),
        ([ONE_OF_MANY], 1, [1]),
        ([ONE_OF_MANY], 9, [4]),
        ([ONE_OF_MANY] * 3, 4, [2, 1, 1]),
        ([ONE_OF_MANY] * 3, 2, [1, 1, 0]),
        ([REPRESENTED, ONE_OF_MANY], 5, [1, 4]),
        ([REPRESENTED, REPRESENTED], 9, [1, 1]),
        ([VOLUME, SHORT], 9, [1, 2]),
        ([Cine(1, False)], 9, [1]),  # a video that states one frame
    ],
)
def test_cines(cines: list[Cine], left: int, counts: list[int]) -> None:
    assert choose_cines(cines, left, LIMITS) == counts


def test_frames_of_a_cine() -> None:
    assert frames_of(1) == FrameSelection()
    assert frames_of(3) == FrameSelection(evenly_spaced=3)


@pytest.mark.parametrize(
    ("formats", "whole"),
    [([], False), ([1], False), ([1, 1], False), ([1, 3], True), ([2], True), ([4], True), ([5], False)],
)
def test_a_trace_or_a_spectrum_is_shown_whole(formats: list[int], whole: bool) -> None:
    header = Dataset()
    header.SequenceOfUltrasoundRegions = []
    for kind in formats:
        item = Dataset()
        item.RegionSpatialFormat = kind
        header.SequenceOfUltrasoundRegions.append(item)
    assert keeps_whole_frame(header) is whole


@pytest.mark.parametrize(
    ("patients", "expected"),
    [
        ({}, ()),
        ({1: "", 2: ""}, ()),
        ({1: "A", 2: "A ", 3: "A\0"}, ()),  # padding of files is no difference
        ({2: "B", 1: "A", 3: "A"}, (2,)),  # by arrival, not by number
        ({1: "", 2: "B", 3: "A", 4: ""}, (3,)),  # one that states none may be anybody's
    ],
)
def test_who_is_another_patient(patients: dict[int, str], expected: tuple[int, ...]) -> None:
    assert strangers(patients) == frozenset(expected)
