"""Read what a DICOM file says of what its frames show: the side, the body part, and how large the picture is in the body."""

from __future__ import annotations

import math

from pydicom.dataset import Dataset

from echovlm_edge.runtime.contracts.request import Box, Examination
from echovlm_edge.runtime.formats.dicom_attributes import number, text, whole
from echovlm_edge.runtime.imaging.dicom.regions import b_mode_regions

LATERALITIES = {"L": "left", "R": "right", "B": "both"}  # PS3.3 C.8.5.6.1.2 and C.7.3.1.1.1; U is an unpaired part
CENTIMETRES = 3  # PhysicalUnitsXDirection, PS3.3 C.8.5.5.1.1
SHORTEST_MM, LONGEST_MM = (
    5.0,
    600.0,
)  # of a picture's diagonal: between a catheter's and a panorama; others are mistakes


def examination(dataset: Dataset, rows: int, columns: int) -> Examination:
    """Read a file's side, body part and scale; `rows` and `columns` are those of its frames."""
    side = text(dataset, "ImageLaterality") or text(dataset, "Laterality")
    return Examination(
        LATERALITIES.get(side, ""), text(dataset, "BodyPartExamined")[:16], _reach_mm(dataset, rows, columns)
    )


def _reach_mm(dataset: Dataset, rows: int, columns: int) -> float | None:
    """Return the longest diagonal of the B-mode regions; None unless each of them has a scale in centimetres."""
    reaches = [_diagonal_mm(region, box) for region, box in b_mode_regions(dataset, rows, columns)]
    known = [reach for reach in reaches if reach is not None and SHORTEST_MM <= reach <= LONGEST_MM]
    return max(known) if known and len(known) == len(reaches) else None


def _diagonal_mm(region: Dataset, box: Box) -> float | None:
    units = {whole(region, f"PhysicalUnits{axis}Direction") for axis in "XY"}
    across, down = (number(region, f"PhysicalDelta{axis}") for axis in "XY")
    if units != {CENTIMETRES} or not across or not down:
        return None
    return 10 * math.hypot((box.right - box.left) * across, (box.bottom - box.top) * down)
