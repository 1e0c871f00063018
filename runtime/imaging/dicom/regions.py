"""Choose the part of a frame that is shown: the B-mode regions that its file declares (PS3.3 C.8.5.5)."""

from __future__ import annotations

from dataclasses import dataclass

from pydicom.dataset import Dataset

from echovlm_edge.runtime.contracts.request import Box
from echovlm_edge.runtime.formats.dicom_attributes import items, whole

TISSUE, TWO_DIMENSIONAL = 1, 1  # RegionDataType and RegionSpatialFormat, PS3.3 C.8.5.5.1
NARROWEST = 28  # pixels: a merged patch of the model; no B-mode picture is smaller
EDGES = ("MinX0", "MinY0", "MaxX1", "MaxY1")


@dataclass(frozen=True)
class Shown:
    """The box of stored pixels that is shown, and notes about it."""

    box: Box
    notes: tuple[str, ...] = ()


def shown_box(dataset: Dataset, rows: int, columns: int, crop_to_regions: bool) -> Shown:
    """Return the box around the B-mode regions of a frame, or the whole frame where the file declares no plausible one.

    Of several B-mode regions (dual view) the union is kept: the model sees what the sonographer saw side by side.
    """
    everything = Box(0, 0, columns, rows)
    boxes = [box for _, box in b_mode_regions(dataset, rows, columns)] if crop_to_regions else []
    if not boxes:
        return Shown(everything)
    union = Box(
        min(box.left for box in boxes),
        min(box.top for box in boxes),
        max(box.right for box in boxes),
        max(box.bottom for box in boxes),
    )
    if min(union.right - union.left, union.bottom - union.top) < NARROWEST:
        return Shown(
            everything,
            (f"Its B-mode region is under {NARROWEST} pixels on a side: the whole frame is shown.",),
        )
    return Shown(union)


def b_mode_regions(dataset: Dataset, rows: int, columns: int) -> list[tuple[Dataset, Box]]:
    """List the B-mode regions that a file declares, with their boxes within its frames; those that no frame can have are left out."""
    regions = []
    for region in items(dataset, "SequenceOfUltrasoundRegions"):
        kind = whole(region, "RegionSpatialFormat"), whole(region, "RegionDataType")
        left, top, right, bottom = (whole(region, f"RegionLocation{edge}") for edge in EDGES)
        if kind != (TWO_DIMENSIONAL, TISSUE) or left is None or top is None or right is None or bottom is None:
            continue
        box = Box(max(0, left), max(0, top), min(columns, right + 1), min(rows, bottom + 1))
        if box.left < box.right and box.top < box.bottom:
            regions.append((region, box))
    return regions
