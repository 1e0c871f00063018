"""Paint seven regions and their findings in millimetres: first the organ, then the finding."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from demo.tissue import STONE_ATTENUATION, Tissue
from demo.truth import Side, Truth
from echovlm_edge.runtime.contracts.tasks import Region


@dataclass(frozen=True)
class Scene:
    """One study being painted; `mirror` is -1 if left and right are exchanged."""

    tissue: Tissue
    truth: Truth
    random: np.random.Generator

    @property
    def mirror(self) -> float:
        """Anatomy is drawn for the right side and mirrored for the left."""
        return -1.0 if self.truth.side is Side.LEFT else 1.0

    def near(self, value: float, spread: float) -> float:
        """Draw a value that varies between persons: uniform within `spread` of the given one."""
        return float(self.random.uniform(value - spread, value + spread))

    @property
    def half_size(self) -> float:
        """Return half the finding's size in mm."""
        assert self.truth.size_mm is not None
        return self.truth.size_mm / 2


def paint(tissue: Tissue, truth: Truth, random: np.random.Generator) -> None:
    """Paint the truth's region with its finding."""
    _PAINTERS[truth.region](Scene(tissue, truth, random))


def lesion_radii(scene: Scene) -> tuple[float, float]:
    """Return a rounded lesion's radii in mm: the larger one is half its size."""
    return scene.half_size, scene.half_size * scene.near(0.8, 0.1)


def cyst(scene: Scene, centre: tuple[float, float]) -> None:
    """Paint a round fluid lesion with a thin bright wall; its low attenuation causes the enhancement behind it."""
    inside = scene.tissue.ellipse(centre, lesion_radii(scene))
    scene.tissue.fluid(inside)
    scene.tissue.ring(inside, 5)


def nodule(scene: Scene, centre: tuple[float, float], echo: float = -15.0) -> None:
    """Paint a solid lesion; an irregular one has a lobed outline and a slight shadow."""
    irregular = scene.truth.margin == "irregular"
    lobes = scene.random.choice([-1, 1], 4) * np.array([0.04, 0.1, 0.08, 0.09]) if irregular else None
    tilt = scene.near(0, 0.15)
    inside = scene.tissue.ellipse(centre, lesion_radii(scene), tilt, lobes=lobes)
    scene.tissue.paint(inside, echo, 0.35 if irregular else 0.0)


def calcification(scene: Scene, centre: tuple[float, float], size: float) -> None:
    """Paint a bright shallow arc whose shadow reaches the bottom."""
    scene.tissue.stone(scene.tissue.ellipse(centre, (size / 2, size / 5), edge=0.4))


def breast(scene: Scene) -> None:
    """Paint skin, fat with its septa, the glandular layer, and striped muscle."""
    tissue = scene.tissue
    depth = scene.truth.depth_mm
    wave = 0.8 * np.sin(tissue.x / scene.near(5, 1.5) + scene.near(0, 3))
    gland_top, gland_bottom = depth * scene.near(0.2, 0.03), depth * scene.near(0.72, 0.04)
    tissue.paint(tissue.band(0, depth), -14)
    septa = np.sin(tissue.x / 2.2 + tissue.z / 1.3) * np.sin(tissue.x / 3.7 - tissue.z / 2.1)
    tissue.echo += 7 * np.clip(septa - 0.55, 0, 1) / 0.45
    tissue.paint(tissue.band(gland_top + wave, gland_bottom + wave, 1.2), 1)
    tissue.paint(tissue.band(gland_bottom + wave, depth * 2), -9)
    tissue.echo += np.where(tissue.z > gland_bottom + wave + 1, 6 * np.sin(tissue.z * 3.2 + wave), 0).astype(np.float32)
    tissue.paint(tissue.band(0, 1.6), 10)
    centre = (scene.near(0, 6), depth * scene.near(0.44, 0.05))
    match scene.truth.kind:
        case "simple cyst":
            cyst(scene, centre)
        case "solid nodule":
            nodule(scene, centre, -20)
        case "calcification":
            calcification(scene, centre, scene.near(6, 1))


def thyroid(scene: Scene) -> None:
    """Paint strap muscles, and a lobe between the trachea (medial) and the carotid (lateral)."""
    tissue, mirror = scene.tissue, scene.mirror
    depth = scene.truth.depth_mm
    tissue.paint(tissue.band(0, depth * 2), -9)
    tissue.echo += 3 * np.sin(tissue.z * 2.4)
    tissue.paint(tissue.band(0, 1.5), 9)
    lobe = (scene.near(0, 1.0) * mirror, scene.near(15, 1))
    tissue.paint(tissue.ellipse(lobe, (scene.near(12, 0.8), scene.near(9.5, 0.8)), edge=0.8), 3)
    carotid = tissue.ellipse((-15.5 * mirror, scene.near(17, 1)), (3.2, 3.0))
    tissue.fluid(carotid)
    tissue.ring(carotid, 9)
    windpipe = tissue.ellipse((19 * mirror, scene.near(15, 1)), (7, 8), edge=0.8)
    tissue.ring(windpipe, 14)
    tissue.paint(windpipe, -35, 1.5)
    centre = (lobe[0] + scene.near(0, 3), lobe[1] + scene.near(0, 1))
    match scene.truth.kind:
        case "simple cyst":
            cyst(scene, centre)
        case "solid nodule":
            nodule(scene, centre, -18)
        case "calcification":
            calcification(scene, centre, scene.near(5, 1))


def liver(scene: Scene) -> None:
    """Paint even parenchyma with vessels above the bright arc of the diaphragm; a fatty liver is bright and fades with depth."""
    tissue, mirror = scene.tissue, scene.mirror
    depth = scene.truth.depth_mm
    fatty = scene.truth.kind == "steatosis"
    tissue.paint(tissue.band(0, depth * 2), 9 if fatty else -2, 0.11 if fatty else 0.0)
    if not fatty:
        for _ in range(4):
            level = 0.22 if scene.random.random() < 0.4 else 0.7  # above or below where a lesion is drawn
            place = (scene.near(0, 45), depth * scene.near(level, 0.05))
            vessel_inside = tissue.ellipse(place, (scene.near(13, 4), scene.near(2.4, 0.6)), scene.near(0, 0.4), edge=1)
            tissue.fluid(vessel_inside)
            tissue.ring(vessel_inside, 8)
    dome = depth * scene.near(0.86, 0.02) - ((tissue.x + 12 * mirror) / 28) ** 2 * 3
    tissue.paint(tissue.band(dome, dome + 3, 1), 18)
    tissue.paint(tissue.band(dome + 4, depth * 2, 2), -22)
    tissue.paint(tissue.band(0, 6, 1), -6)
    centre = (scene.near(0, 16), depth * scene.near(0.46, 0.06))
    match scene.truth.kind:
        case "simple cyst":
            cyst(scene, centre)
        case "hemangioma":
            tissue.paint(tissue.ellipse(centre, lesion_radii(scene), edge=1.2), 14)


def kidney(scene: Scene) -> None:
    """Paint a bean with dark cortex and bright sinus in fat, below the muscles of the flank."""
    tissue = scene.tissue
    depth = scene.truth.depth_mm
    tissue.paint(tissue.band(0, depth * 2), -5)
    tissue.echo += np.where(tissue.z < 20, 4 * np.sin(tissue.z * 0.9), 0).astype(np.float32)
    centre = (scene.near(0, 4), depth * scene.near(0.5, 0.03))
    tilt = scene.mirror * scene.near(0.22, 0.08)
    outline = tissue.ellipse(centre, (scene.near(52, 3), scene.near(26, 1.5)), tilt, edge=1.5)
    tissue.ring(outline, 10)
    tissue.paint(outline, -13)
    tissue.paint(tissue.ellipse(centre, (scene.near(31, 2), scene.near(10, 1)), tilt, edge=4), 11)
    match scene.truth.kind:
        case "stone":
            at = (centre[0] + scene.near(0, 10), centre[1] + scene.near(0, 3))
            tissue.stone(tissue.ellipse(at, (scene.half_size, scene.half_size * 0.45), edge=1))
        case "hydronephrosis":
            tissue.fluid(tissue.ellipse(centre, (scene.near(27, 2), scene.half_size), tilt, edge=1.5))
        case "simple cyst":
            pole = float(scene.random.choice([-1, 1])) * 27
            at = (centre[0] + pole * math.cos(tilt), centre[1] + pole * math.sin(tilt) - scene.near(4, 2))
            cyst(scene, at)


def gynecology(scene: Scene) -> None:
    """Paint the bladder in front, behind it the uterus with its bright stripe, and dark pelvic muscle around both."""
    tissue = scene.tissue
    depth = scene.truth.depth_mm
    tissue.paint(tissue.band(0, depth * 2), -10)
    bladder = tissue.ellipse((scene.near(-16, 3), depth * 0.21), (scene.near(34, 3), depth * 0.105), 0.1, edge=1.5)
    tissue.fluid(bladder)
    tissue.ring(bladder, 9)
    uterus = (scene.near(-8, 3), depth * scene.near(0.46, 0.015))
    tilt = scene.near(0.25, 0.08)
    tissue.paint(tissue.ellipse(uterus, (scene.near(36, 2), scene.near(18, 1)), tilt, edge=1.5), 2)
    tissue.paint(tissue.ellipse(uterus, (24, 2.2), tilt, edge=1.5), 14)
    match scene.truth.kind:
        case "fibroid":
            at = (uterus[0] + scene.near(-8, 6), uterus[1] + scene.near(2, 4))
            inside = tissue.ellipse(at, lesion_radii(scene), edge=1.5)
            tissue.paint(inside, -15, 0.05)
            tissue.ring(inside, 6)
        case "ovarian cyst":
            cyst(scene, (scene.near(34, 2), depth * scene.near(0.5, 0.04)))
        case "pelvic effusion":
            floor = depth * 0.94 - (tissue.x / 45) ** 2 * 5
            pool = tissue.band(floor - 2 * scene.half_size, floor, 1) * tissue.ellipse(
                (0, depth * 0.9), (46, 48), edge=3
            )
            tissue.fluid(pool)
            tissue.ring(pool, 6)


def heart(scene: Scene) -> None:
    """Paint four chambers around a septum and two valves, within the heart muscle."""
    tissue = scene.tissue
    scale = scene.near(1.0, 0.04)
    septum = (
        scene.truth.size_mm if scene.truth.kind == "septal hypertrophy" and scene.truth.size_mm else scene.near(9, 1)
    )
    tissue.paint(tissue.band(0, scene.truth.depth_mm * 2), -8)
    centre, wide, tall = (0.0, 66 * scale), 40 * scale, 48 * scale
    if scene.truth.kind == "pericardial effusion" and scene.truth.size_mm:
        outer = tissue.ellipse(centre, (wide + scene.truth.size_mm, tall + scene.truth.size_mm), edge=2)
        tissue.fluid(outer)
        tissue.ring(outer, 12)
    muscle = tissue.ellipse(centre, (wide, tall), edge=2)
    tissue.paint(muscle, 1)
    tissue.ring(muscle, 10)
    left, right = septum / 2 + 13 * scale, -septum / 2 - 11 * scale
    for place, radii in (
        ((left, 52 * scale), (13 * scale, 24 * scale)),
        ((right, 54 * scale), (11 * scale, 21 * scale)),
        ((left, 95 * scale), (13 * scale, 12 * scale)),
        ((right, 93 * scale), (11 * scale, 12 * scale)),
    ):
        tissue.fluid(tissue.ellipse(place, radii, edge=2))
    for middle in (left, right):
        tissue.paint(tissue.ellipse((middle, 79 * scale), (11 * scale, 1.6), edge=1), 14)
    if scene.truth.kind == "thrombus":
        tissue.paint(tissue.ellipse((left, 30 * scale + scene.half_size), lesion_radii(scene)[::-1], edge=1.5), 13)


def vessel(scene: Scene) -> None:
    """Paint a vessel along the frame: two bright walls around flowing blood."""
    tissue, mirror = scene.tissue, scene.mirror
    depth = scene.truth.depth_mm
    tissue.paint(tissue.band(0, depth * 2), -4)
    tissue.echo += 4 * np.sin(tissue.z * 1.9 + 0.15 * tissue.x)
    middle = depth * scene.near(0.52, 0.03) + mirror * scene.near(0.05, 0.02) * tissue.x
    radius = scene.near(4.3, 0.4)
    tissue.paint(tissue.band(middle - radius - 1.3, middle + radius + 1.3), 13)
    lumen = tissue.band(middle - radius, middle + radius)
    clot = scene.truth.kind == "thrombosis"
    if clot:
        tissue.paint(lumen, -7)
        return
    tissue.fluid(lumen)
    if scene.truth.size_mm:
        at = scene.near(0, 5)
        wall = float(np.interp(at, tissue.x[:, 0], middle[:, 0])) + radius - 0.9
        plaque = tissue.ellipse((at, wall), (scene.half_size, 2.6), edge=0.5)
        if scene.truth.kind == "calcified plaque":
            tissue.paint(plaque, 24, STONE_ATTENUATION / 2)
        else:
            tissue.paint(plaque, -6)


_PAINTERS: dict[Region, Callable[[Scene], None]] = {
    Region.BREAST: breast,
    Region.THYROID: thyroid,
    Region.LIVER: liver,
    Region.KIDNEY: kidney,
    Region.GYNECOLOGY: gynecology,
    Region.HEART: heart,
    Region.VESSEL: vessel,
}
