"""Seven regions and their findings, painted in millimetres: organ first, then what is found in it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from demo.scene import Scene, calcification, cyst, nodule
from demo.tissue import STONE_ATTENUATION, Field, Tissue
from demo.truth import Truth
from echovlm_edge.runtime.tasks import Region


def paint(tissue: Tissue, truth: Truth, random: np.random.Generator) -> None:
    """Paint the truth's region with its finding."""
    _PAINTERS[truth.region](Scene(tissue, truth, random))


def _fibres(tissue: Tissue, spacing: float, gain: float, slope: float = 0.0) -> Field:
    """Muscle: bright septa between dark bundles, `spacing` mm apart, up to `gain` dB, broken along their way."""
    phase = 2 * np.pi * (tissue.v + slope * tissue.u) / spacing + 0.8 * tissue.grain(8, 8)
    return np.float32(gain) * np.sin(phase, dtype=np.float32) * (0.6 + 0.4 * tissue.grain(10, 12))


def breast(scene: Scene) -> None:
    """Skin, dark fat lobules between ligaments, the bright glandular layer, striped muscle."""
    tissue, depth = scene.tissue, float(scene.truth.depth_mm)
    gland_top, gland_bottom = depth * scene.near(0.22, 0.03), depth * scene.near(0.72, 0.04)
    arch = np.abs(np.sin(tissue.u / scene.near(4.5, 0.8) + scene.near(0, 3), dtype=np.float32))
    fat = tissue.band(0, depth)
    tissue.paint(fat, -15 + 1.5 * tissue.grain(9, 9))
    tissue.paint(np.clip(1 - arch / 0.16, 0, 1) * tissue.band(2, gland_top + 2), 1)  # Cooper's ligaments
    top = gland_top + 1.6 * arch
    gland = tissue.band(top, gland_bottom, 0.8)
    tissue.paint(gland, 1 + 2.0 * tissue.grain(16, 14), interface=2)
    muscle = tissue.band(gland_bottom, depth * 2)
    tissue.paint(muscle, -9 + _fibres(tissue, 2.6, 6, 0.05), interface=5)
    tissue.paint(tissue.band(-5, 1.7), 11, interface=6)
    centre = (scene.near(0, 0.2 * depth), depth * scene.near(0.46, 0.04))
    match scene.truth.kind:
        case "simple cyst":
            cyst(scene, centre)
        case "solid nodule":
            nodule(scene, centre, -18)
        case "calcification":
            calcification(scene, (centre[0], depth * scene.near(0.4, 0.05)), scene.near(6.5, 1))


def thyroid(scene: Scene) -> None:
    """Strap muscles over a lobe between the windpipe (inside) and the carotid artery (outside)."""
    tissue, mirror, depth = scene.tissue, scene.mirror, float(scene.truth.depth_mm)
    tissue.paint(tissue.band(-5, depth * 2), -6 + 2 * tissue.grain(8, 8))
    tissue.paint(tissue.band(3, 8.5), -13 + _fibres(tissue, 1.8, 5), interface=2)
    tissue.paint(tissue.band(26, depth * 2), -11 + _fibres(tissue, 2.6, 5), interface=4)
    tissue.paint(tissue.band(-5, 1.6), 10, interface=5)
    lobe = (scene.near(0, 0.8) * mirror, scene.near(16, 0.6))
    inside = tissue.ellipse(lobe, (scene.near(11.5, 0.6), scene.near(9, 0.5)), edge=0.7)
    tissue.paint(inside, 3 + tissue.grain(14, 14), interface=4)
    carotid = tissue.ellipse((-15.0 * mirror, scene.near(18.5, 1)), (3.0, 3.0))
    tissue.wall(carotid, 7)
    tissue.fluid(carotid, 7)
    windpipe = tissue.ellipse((19.5 * mirror, scene.near(17, 1)), (8, 9.5), edge=0.8)
    tissue.wall(windpipe, 14)
    tissue.paint(windpipe, -25, 1.2, 8)
    centre = (lobe[0] + scene.near(0, 2), lobe[1] + scene.near(0, 0.7))
    match scene.truth.kind:
        case "simple cyst":
            cyst(scene, centre)
        case "solid nodule":
            nodule(scene, centre, -16)
        case "calcification":
            calcification(scene, (centre[0], centre[1] - 2), scene.near(5.5, 0.8))


def liver(scene: Scene) -> None:
    """Even parenchyma with vessels in front of the bright diaphragm; a fatty liver is bright, without vessels, and fades."""
    tissue, mirror, depth = scene.tissue, scene.mirror, float(scene.truth.depth_mm)
    fatty = scene.truth.kind == "steatosis"
    tissue.paint(np.ones_like(tissue.x), (8 if fatty else -3) + 0.8 * tissue.grain(12, 12), 0.12 if fatty else 0.0)
    if not fatty:
        _liver_vessels(scene)
    slope = np.square((tissue.u + 10 * mirror) / 25)
    dome = (depth * scene.near(0.87, 0.02) - 2.5 * slope).astype(np.float32)
    tissue.paint(tissue.band(dome, depth * 2, 2), -20, 0.05)
    tissue.paint(tissue.band(dome, dome + 2.5, 1), 12, interface=12)
    tissue.paint(tissue.band(-9, 12, 1), -9 + _fibres(tissue, 4, 6), interface=6)
    centre = (scene.near(0, 18), depth * scene.near(0.46, 0.04))
    match scene.truth.kind:
        case "simple cyst":
            cyst(scene, centre)
        case "hemangioma":
            inside = tissue.ellipse(centre, scene.radii(), lobes=np.array([0.0, 0.03, 0.03], np.float32), exact=True)
            tissue.paint(inside, 12 + tissue.grain(20, 20))


def _liver_vessels(scene: Scene) -> None:
    """Dark tubes above and below where a lesion lies: portal branches with bright walls, hepatic veins without."""
    tissue, depth = scene.tissue, scene.truth.depth_mm
    for number, level in enumerate((0.19, 0.7, 0.74)):
        place = (scene.near((-28, 26, -24)[number], 8), depth * scene.near(level, 0.02))
        tube = tissue.ellipse(place, (scene.near(18, 3), scene.near(3.4, 0.5)), scene.near(0, 0.3), edge=1)
        if number != 1:
            tissue.wall(tube, 6)
        tissue.fluid(tube, 2)


def kidney(scene: Scene) -> None:
    """A bean with dark cortex, darker pyramids and a bright sinus, below muscle and the liver's or spleen's edge."""
    tissue, depth = scene.tissue, float(scene.truth.depth_mm)
    tissue.paint(np.ones_like(tissue.x), -3 + 2 * tissue.grain(8, 8))
    tissue.paint(tissue.band(-9, 15, 1), -9 + _fibres(tissue, 5, 6), interface=4)
    centre = (scene.near(0, 3), depth * scene.near(0.52, 0.02))
    tilt = scene.mirror * scene.near(0.22, 0.06)
    along, across = math.cos(tilt), math.sin(tilt)
    outline = tissue.ellipse(centre, (scene.near(50, 2.5), scene.near(25, 1.2)), tilt, edge=1.5)
    tissue.wall(outline, 5)
    tissue.paint(outline, -10, interface=4)
    for number in range(10):
        turn = 2 * math.pi * (number + 0.5) / 10
        x, z = 38 * math.cos(turn), 16.5 * math.sin(turn)
        place = (centre[0] + x * along - z * across, centre[1] + x * across + z * along)
        tissue.paint(tissue.ellipse(place, (5.5, 4.5), tilt, edge=2), -21)
    tissue.paint(
        tissue.ellipse(centre, (scene.near(31, 2), scene.near(9.5, 0.8)), tilt, edge=4), 8 + 2 * tissue.grain(16, 16)
    )
    match scene.truth.kind:
        case "stone":
            at = (centre[0] + scene.near(0, 10), centre[1] + scene.near(0, 2))
            tissue.stone(tissue.ellipse(at, (scene.half_size, scene.half_size * 0.42), edge=1, exact=True))
        case "hydronephrosis":
            _hydronephrosis(scene, centre, tilt)
        case "simple cyst":
            pole = float(scene.random.choice([-1, 1])) * 27
            cyst(scene, (centre[0] + pole * along, centre[1] + pole * across - scene.near(4, 2)))


def _hydronephrosis(scene: Scene, centre: tuple[float, float], tilt: float) -> None:
    """A fluid-filled pelvis whose depth is the size, with calyces reaching into the cortex."""
    tissue = scene.tissue
    pelvis = tissue.ellipse(centre, (scene.near(24, 2), scene.half_size), tilt, edge=1.5, exact=True)
    for place in (-25, -13, 13, 25):
        at = (centre[0] + place * math.cos(tilt), centre[1] + place * math.sin(tilt))
        # Near the poles the pelvis is thin: a calyx there widens it without adding to its depth.
        pelvis = np.maximum(pelvis, tissue.ellipse(at, (5.5, 0.72 * scene.half_size), tilt, edge=1.5, exact=True))
    tissue.fluid(pelvis, 4)


def gynecology(scene: Scene) -> None:
    """The bladder in front, the uterus with its bright stripe behind it, bowel beside, muscle of the pelvis around."""
    tissue, depth = scene.tissue, float(scene.truth.depth_mm)
    tissue.paint(np.ones_like(tissue.x), -10 + 2.5 * tissue.grain(9, 9))
    tissue.paint(tissue.band(-9, 11, 1), -10 + _fibres(tissue, 4, 6), interface=4)
    bladder = tissue.ellipse((scene.near(-14, 3), depth * 0.225), (scene.near(33, 3), depth * 0.1), 0.1, edge=1.5)
    tissue.wall(bladder, 3)
    tissue.fluid(bladder, 5)
    uterus, tilt = (scene.near(-8, 3), depth * scene.near(0.47, 0.012)), scene.near(0.22, 0.07)
    tissue.paint(tissue.ellipse(uterus, (scene.near(36, 2), scene.near(18, 1)), tilt, edge=1.5), 2, interface=5)
    tissue.paint(tissue.ellipse(uterus, (24, 2.4), tilt, edge=1.5), 12)
    match scene.truth.kind:
        case "fibroid":
            at = (uterus[0] + scene.near(-6, 6), uterus[1] + scene.near(2, 3))
            inside = tissue.ellipse(at, scene.radii(), scene.near(0, 0.2), edge=1.5, exact=True)
            tissue.wall(inside, 4)
            tissue.paint(inside, -15 + _fibres(tissue, 6, 1.5, 0.5), 0.05)
        case "ovarian cyst":
            cyst(scene, (scene.near(36, 2), depth * scene.near(0.52, 0.03)))
        case "pelvic effusion":
            _douglas_pouch(scene)


def _douglas_pouch(scene: Scene) -> None:
    """A crescent of fluid behind the uterus; its depth in the middle is the size."""
    tissue, depth = scene.tissue, scene.truth.depth_mm
    aside = np.square((tissue.x - scene.near(0, 4)) / scene.near(40, 3))
    floor = depth * scene.near(0.93, 0.01) - 16 * aside
    top = floor - 2 * scene.half_size * (1 - aside)
    pool = np.clip(tissue.z - top + 0.5, 0, 1) * np.clip(floor - tissue.z + 0.5, 0, 1) * (aside < 1)
    tissue.ring(pool, 4)
    tissue.fluid(pool.astype(np.float32), 3)


def heart(scene: Scene) -> None:
    """Four chambers in their muscle around a septum and two valves, between dark lungs."""
    tissue, truth = scene.tissue, scene.truth
    scale = scene.near(1.0, 0.04)
    tissue.paint(np.ones_like(tissue.x), -12 + 3 * tissue.grain(9, 9), 0.02)
    tissue.paint(tissue.band(-9, 9, 2), -2 + _fibres(tissue, 5, 5))
    septum = scene.half_size * 2 if truth.kind == "septal hypertrophy" else scene.near(9, 1)
    centre, wide, tall = (0.0, 68 * scale), 36.5 * scale + septum / 2, 52 * scale
    if truth.kind == "pericardial effusion":
        gap = 2 * scene.half_size
        outer = tissue.ellipse((0.0, centre[1] + gap / 4), (wide + gap, tall + 0.75 * gap), edge=2, exact=True)
        tissue.wall(outer, 8)
        tissue.fluid(outer, 6)
    muscle = tissue.ellipse(centre, (wide, tall), edge=2, exact=True)
    tissue.paint(muscle, 1 + 1.5 * tissue.grain(12, 12), interface=8)
    left, right = septum / 2 + 14 * scale, -septum / 2 - 12 * scale
    chambers = np.zeros_like(tissue.x)
    for place, radii in (
        ((left, 56 * scale), (14 * scale, 27 * scale)),
        ((right, 59 * scale), (12 * scale, 24 * scale)),
        ((left, 98 * scale), (14 * scale, 13 * scale)),
        ((right, 97 * scale), (12 * scale, 13 * scale)),
    ):
        chambers = np.maximum(chambers, tissue.ellipse(place, radii, edge=1.5, exact=True))
    tissue.fluid(chambers, 5)
    for middle, turn in ((left, 0.35), (right, -0.35)):
        for leaf in (-1, 1):
            leaflet = tissue.ellipse((middle + leaf * 6.5 * scale, 82 * scale), (7.5 * scale, 1.3), leaf * turn, edge=1)
            tissue.paint(leaflet, 9, interface=6)
    if truth.kind == "thrombus":
        thrombus = tissue.ellipse((left, 30 * scale + scene.half_size), scene.radii()[::-1], edge=1.5, exact=True)
        tissue.paint(thrombus, 9 + 1.5 * tissue.grain(20, 20), interface=5)


def vessel(scene: Scene) -> None:
    """A carotid artery along the frame: muscle in front, intima and adventitia around dark blood."""
    tissue, mirror, depth = scene.tissue, scene.mirror, float(scene.truth.depth_mm)
    tissue.paint(np.ones_like(tissue.x), -7 + 2.5 * tissue.grain(8, 9))
    tissue.paint(tissue.band(3, depth * 0.27), -11 + _fibres(tissue, 2.2, 6, 0.06), interface=3)
    tissue.paint(tissue.band(-5, 1.6), 10, interface=5)
    middle = depth * scene.near(0.55, 0.02) + mirror * scene.near(0.06, 0.02) * tissue.u
    radius = scene.near(4.3, 0.35)
    tissue.paint(tissue.band(middle - radius - 1.9, middle + radius + 1.9, 0.8), 8, interface=3)
    tissue.paint(tissue.band(middle - radius - 0.8, middle + radius + 0.8, 0.3), -14)
    tissue.paint(tissue.band(middle - radius - 0.35, middle + radius + 0.35, 0.3), 9)
    lumen = tissue.band(middle - radius, middle + radius)
    if scene.truth.kind == "thrombosis":
        tissue.paint(lumen, -8 + 2 * tissue.grain(16, 24))
        return
    tissue.fluid(lumen, 5)
    if scene.truth.kind in ("calcified plaque", "soft plaque"):
        beam = int(scene.near(0.5, 0.12) * len(tissue.x))
        wall = int(np.argmin(np.abs(tissue.v[beam] - middle[beam] - radius)))
        at = (float(tissue.x[beam, wall]), float(tissue.z[beam, wall]) - 0.6)
        plaque = tissue.ellipse(at, (scene.half_size, 2.6), mirror * 0.06, edge=0.5, exact=True)
        if scene.truth.kind == "calcified plaque":
            tissue.paint(plaque, 20, STONE_ATTENUATION / 2, 10)
        else:
            tissue.paint(plaque, -5 + tissue.grain(20, 20), interface=2)


_PAINTERS: dict[Region, Callable[[Scene], None]] = {
    Region.BREAST: breast,
    Region.THYROID: thyroid,
    Region.LIVER: liver,
    Region.KIDNEY: kidney,
    Region.GYNECOLOGY: gynecology,
    Region.HEART: heart,
    Region.VESSEL: vessel,
}
