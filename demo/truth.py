"""Define the catalogue of regions and findings, and one study's ground truth."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from echovlm_edge.runtime.contracts.tasks import Region


class Side(enum.Enum):
    """A side of the body; for the liver, a lobe."""

    LEFT = "left"
    RIGHT = "right"


class Probe(enum.Enum):
    """The probe's beams: parallel, a wide fan from a curved face, or a fan from a point."""

    LINEAR = "linear"
    CURVED = "curved"
    PHASED = "phased"


@dataclass(frozen=True)
class Finding:
    """One kind of finding.

    Attributes:
        kind: its name; `normal` for none.
        size_mm: the smallest and largest that are drawn, or None if a size is not reported.
        margins: how its edge may look; empty if that is not reported.
        echogenicity: what a report calls its brightness.
    """

    kind: str
    size_mm: tuple[int, int] | None = None
    margins: tuple[str, ...] = ()
    echogenicity: str = ""


@dataclass(frozen=True)
class RegionPlan:
    """How a region is examined: probe, depths in millimetres, whether it has sides, and its possible findings."""

    probe: Probe
    depths_mm: tuple[int, ...]
    has_side: bool
    findings: tuple[Finding, ...]


NORMAL = Finding("normal")
_MARGINS = ("smooth", "irregular")

CATALOGUE = {
    Region.BREAST: RegionPlan(
        Probe.LINEAR,
        (32, 42),
        True,
        (
            NORMAL,
            Finding("simple cyst", (6, 18), (), "anechoic"),
            Finding("solid nodule", (6, 18), _MARGINS, "hypoechoic"),
            Finding("calcification", None, (), "hyperechoic"),
        ),
    ),
    Region.THYROID: RegionPlan(
        Probe.LINEAR,
        (32, 42),
        True,
        (
            NORMAL,
            Finding("simple cyst", (5, 14), (), "anechoic"),
            Finding("solid nodule", (5, 14), _MARGINS, "hypoechoic"),
            Finding("calcification", None, (), "hyperechoic"),
        ),
    ),
    Region.LIVER: RegionPlan(
        Probe.CURVED,
        (110, 140),
        True,
        (
            NORMAL,
            Finding("simple cyst", (18, 50), (), "anechoic"),
            Finding("hemangioma", (18, 50), (), "hyperechoic"),
            Finding("steatosis", None, (), "hyperechoic"),
        ),
    ),
    Region.KIDNEY: RegionPlan(
        Probe.CURVED,
        (110, 140),
        True,
        (
            NORMAL,
            Finding("stone", (12, 26), (), "hyperechoic"),
            Finding("hydronephrosis", (14, 34), (), "anechoic"),
            Finding("simple cyst", (18, 40), (), "anechoic"),
        ),
    ),
    Region.GYNECOLOGY: RegionPlan(
        Probe.CURVED,
        (120, 140),
        False,
        (
            NORMAL,
            Finding("fibroid", (18, 46), (), "hypoechoic"),
            Finding("ovarian cyst", (20, 50), (), "anechoic"),
            Finding("pelvic effusion", (12, 30), (), "anechoic"),
        ),
    ),
    Region.HEART: RegionPlan(
        Probe.PHASED,
        (150, 170),
        False,
        (
            NORMAL,
            Finding("pericardial effusion", (12, 26), (), "anechoic"),
            Finding("thrombus", (14, 32), (), "hyperechoic"),
            Finding("septal hypertrophy", (16, 28), (), "isoechoic"),
        ),
    ),
    Region.VESSEL: RegionPlan(
        Probe.LINEAR,
        (30, 40),
        True,
        (
            NORMAL,
            Finding("calcified plaque", (6, 16), (), "hyperechoic"),
            Finding("soft plaque", (6, 16), (), "hypoechoic"),
            Finding("thrombosis", None, (), "hypoechoic"),
        ),
    ),
}


@dataclass(frozen=True)
class Truth:
    """The ground truth of one study.

    Attributes:
        region: where it was taken.
        kind: the finding's, `normal` for none.
        side: of the body or the liver's lobe; None if the region has no sides.
        size_mm: the finding's largest extent as drawn, or None if it has none.
        margin: `smooth` or `irregular`, empty if that is not reported.
        echogenicity: of the finding.
        probe: what it was taken with.
        depth_mm: from the probe's face to the frame's lower edge.
        mm_per_pixel: the same in both directions.
    """

    region: Region
    kind: str
    side: Side | None
    size_mm: int | None
    margin: str
    echogenicity: str
    probe: Probe
    depth_mm: int
    mm_per_pixel: float


def finding(truth: Truth) -> Finding:
    """Return the catalogue's entry for a study's finding."""
    return next(entry for entry in CATALOGUE[truth.region].findings if entry.kind == truth.kind)


def without_finding(truth: Truth) -> Truth:
    """Return the truth of a frame of the same study that does not show its finding."""
    return replace(truth, kind=NORMAL.kind, size_mm=None, margin="", echogenicity=NORMAL.echogenicity)
