"""Turn tissue into a B-mode frame: speckle, beam, attenuation and TGC, log compression, scan conversion, annotations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter1d

from demo.tissue import Field, Tissue
from demo.truth import Probe, Side, Truth

FRAME = 280  # pixels on each side
LEFT, TOP = 28, 28  # the picture's corner: the ruler is left of it, the annotations above
PICTURE = FRAME - LEFT - 4  # pixels from the probe's face to the deepest sample
BEAMS, SAMPLES = 112, 240
DYNAMIC_RANGE_DB = 58.0
CURVED_RADIUS_MM, CURVED_HALF_ANGLE = 55.0, 0.60
PHASED_HALF_ANGLE = 0.72


@dataclass(frozen=True)
class Geometry:
    """Positions of beams and pixels for one probe and depth.

    Attributes:
        x: lateral position in mm of each beam's samples, float32 [BEAMS, SAMPLES].
        z: their depth, likewise.
        corners: flat indices int64 [4, n] of the samples around each pixel inside the picture.
        weights: their bilinear weights float32 [4, n].
        pixels: flat indices int64 [n] of those pixels in the frame.
    """

    x: Field
    z: Field
    corners: NDArray[np.int64]
    weights: Field
    pixels: NDArray[np.int64]


@lru_cache(maxsize=64)
def geometry(probe: Probe, depth_mm: int) -> Geometry:
    """Compute beams and scan conversion of a probe at a depth."""
    along = np.arange(SAMPLES, dtype=np.float32) / (SAMPLES - 1) * depth_mm
    across = np.linspace(-1, 1, BEAMS, dtype=np.float32)[:, None]
    rows, columns = np.mgrid[0:PICTURE, 0:PICTURE].astype(np.float32)
    pixel_x = (columns - (PICTURE - 1) / 2) / (PICTURE - 1) * depth_mm
    pixel_z = rows / (PICTURE - 1) * depth_mm
    if probe is Probe.LINEAR:
        half = 0.5 * depth_mm
        x, z = np.broadcast_to(across * half, (BEAMS, SAMPLES)), np.broadcast_to(along, (BEAMS, SAMPLES))
        beam, sample = pixel_x / half, pixel_z
    else:
        curved = probe is Probe.CURVED
        radius, spread = (CURVED_RADIUS_MM, CURVED_HALF_ANGLE) if curved else (0.0, PHASED_HALF_ANGLE)
        x, z = (radius + along) * np.sin(across * spread), (radius + along) * np.cos(across * spread) - radius
        beam = np.arctan2(pixel_x, pixel_z + radius) / spread
        sample = np.hypot(pixel_x, pixel_z + radius) - radius
    beam_index = (beam + 1) / 2 * (BEAMS - 1)
    sample_index = sample / depth_mm * (SAMPLES - 1)
    inside = (beam_index >= 0) & (beam_index <= BEAMS - 1) & (sample_index >= 0) & (sample_index <= SAMPLES - 1)
    low_beam = np.minimum(beam_index[inside].astype(np.int64), BEAMS - 2)
    low_sample = np.minimum(sample_index[inside].astype(np.int64), SAMPLES - 2)
    u, v = beam_index[inside] - low_beam, sample_index[inside] - low_sample
    first = low_beam * SAMPLES + low_sample
    corners = np.stack([first, first + 1, first + SAMPLES, first + SAMPLES + 1])
    weights = np.stack([(1 - u) * (1 - v), (1 - u) * v, u * (1 - v), u * v]).astype(np.float32)
    frame_rows, frame_columns = rows[inside].astype(np.int64) + TOP, columns[inside].astype(np.int64) + LEFT
    return Geometry(
        np.ascontiguousarray(x, np.float32),
        np.ascontiguousarray(z, np.float32),
        corners,
        weights,
        frame_rows * FRAME + frame_columns,
    )


def acquire(tissue: Tissue, truth: Truth, random: np.random.Generator) -> NDArray[np.uint8]:
    """Simulate a frame uint8 [FRAME, FRAME] of painted tissue.

    Speckle is fully developed: complex Gaussian scatterers of the tissue's echogenicity, seen through a point-spread
    function that is short along the beam and widens away from the focus (Wagner et al. 1983). Sound is attenuated on
    the way in and back. The time-gain compensation (TGC) assumes soft tissue, which causes enhancement behind fluid and a shadow
    behind stone.
    """
    plan = geometry(truth.probe, truth.depth_mm)
    amplitude = np.power(np.float32(10), tissue.echo / 20)
    scatterers = random.standard_normal((2, BEAMS, SAMPLES), dtype=np.float32) * amplitude
    echoes = _point_spread(scatterers)
    envelope = np.hypot(echoes[0], echoes[1]) + 1e-6
    step = truth.depth_mm / (SAMPLES - 1)
    lost = 2 * step * np.cumsum(tissue.excess, axis=1)
    noise = np.float32(10 ** (-48 / 20)) * np.abs(random.standard_normal(envelope.shape, dtype=np.float32))
    level = 20 * np.log10(envelope * np.power(np.float32(10), -lost / 20) + noise)
    gain = random.uniform(-3, 3)
    bright = np.clip((level + gain + 40) / DYNAMIC_RANGE_DB, 0, 1) * 255
    frame = np.zeros(FRAME * FRAME, np.float32)
    frame[plan.pixels] = np.einsum("cn,cn->n", bright.reshape(-1)[plan.corners], plan.weights)
    return _annotate(frame.reshape(FRAME, FRAME).astype(np.uint8), truth)


def _point_spread(scatterers: Field) -> Field:
    """Blur along the beam, and across it more with the distance from the focus; unit gain for speckle."""
    axial = gaussian_filter1d(scatterers, 0.9, axis=2, mode="nearest", truncate=3)
    sharp = gaussian_filter1d(axial, 0.8, axis=1, mode="nearest", truncate=3)
    wide = gaussian_filter1d(axial, 1.7, axis=1, mode="nearest", truncate=3)
    depth = np.linspace(0, 1, scatterers.shape[2], dtype=np.float32)
    defocus = np.clip(np.abs(depth - 0.45) * 1.8, 0, 1)
    # A Gaussian of width s averages 2 s sqrt(pi) independent samples: divide by the root to keep the mean power.
    gains = [np.sqrt(2 * np.sqrt(np.pi) * 0.9 * 2 * np.sqrt(np.pi) * width) for width in (0.8, 1.7)]
    return (1 - defocus) * sharp * np.float32(gains[0]) + defocus * wide * np.float32(gains[1])


def _annotate(frame: NDArray[np.uint8], truth: Truth) -> NDArray[np.uint8]:
    """Draw the depth ruler (a tick every 10 mm) and, for a region with sides, the body mark: an outline with the examined side filled."""
    picture = Image.fromarray(frame)
    draw = ImageDraw.Draw(picture)
    pixels_per_mm = (PICTURE - 1) / truth.depth_mm
    draw.line([(20, TOP), (20, TOP + PICTURE - 1)], fill=150)
    for tick in range(truth.depth_mm // 10 + 1):
        row = round(TOP + tick * 10 * pixels_per_mm)
        draw.rectangle([8 if tick % 5 == 0 else 12, row - 1, 20, row], fill=255)
    if truth.side is not None:
        draw.rectangle([208, 2, 271, 25], outline=170)
        # A body mark is drawn facing the reader, so the patient's right is on the left.
        corner = 212 if truth.side is Side.RIGHT else 243
        draw.rectangle([corner, 6, corner + 24, 21], fill=255)
    return np.asarray(picture)
