"""What a DICOM file says of its frames' side, body part and scale."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from echovlm_edge.runtime.contracts.request import Examination, ImageInput
from echovlm_edge.runtime.imaging.image_file import decode_image
from tests.support.dicom_files import region, saved, ultrasound


def examined(**attributes: Any) -> Examination:
    (frame,) = decode_image(ImageInput(saved(ultrasound(np.zeros((60, 80), np.uint8), "MONOCHROME2", **attributes))))
    assert frame.source
    return frame.source.examination


def scaled(left: int, top: int, right: int, bottom: int, across: float, down: float, units: int = 3) -> Dataset:
    item = region(left, top, right, bottom)
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = units
    item.PhysicalDeltaX, item.PhysicalDeltaY = across, down
    return item


@pytest.mark.parametrize(
    ("attributes", "side"),
    [
        ({"Laterality": "L"}, "left"),
        ({"Laterality": "R"}, "right"),
        ({"ImageLaterality": "R", "Laterality": "L"}, "right"),
        ({"ImageLaterality": "B"}, "both"),
        ({"ImageLaterality": "U"}, ""),
        ({"Laterality": ""}, ""),
        ({}, ""),
    ],
)
def test_sides(attributes: dict[str, str], side: str) -> None:
    assert examined(**attributes).laterality == side


def test_the_body_part_is_a_code_string() -> None:
    assert examined(BodyPartExamined="Breast ").body_part == "BREAST"
    assert examined().body_part == ""


def test_the_reach_is_the_diagonal_of_the_largest_region_with_a_scale() -> None:
    one = scaled(0, 0, 39, 29, 0.1, 0.1)  # 40 x 30 pixels of a millimetre
    assert examined(SequenceOfUltrasoundRegions=[one]).reach_mm == pytest.approx(50)
    two = scaled(40, 0, 79, 59, 0.05, 0.1)
    reach = examined(SequenceOfUltrasoundRegions=[one, two]).reach_mm
    assert reach == pytest.approx(math.hypot(20, 60))


@pytest.mark.parametrize(
    "regions",
    [
        [],
        [region(0, 0, 39, 29)],  # without a scale
        [scaled(0, 0, 39, 29, 0.1, 0.1), region(40, 0, 79, 29)],  # one of two
        [scaled(0, 0, 39, 29, 0.1, 0.1, units=4)],  # seconds
        [scaled(0, 0, 39, 29, 0.0, 0.1)],
        [scaled(0, 0, 39, 29, 50.0, 50.0)],  # twenty-five metres
    ],
)
def test_where_the_scale_is_not_known_there_is_no_reach(regions: list[Dataset]) -> None:
    assert examined(SequenceOfUltrasoundRegions=regions).reach_mm is None
