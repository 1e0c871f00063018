"""From tissue to a B-mode frame: speckle, beam, attenuation and TGC, log compression, scan conversion."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from demo.annotation import FRAME, LEFT, PICTURE, TOP, marks
from demo.tissue import SOFT_ATTENUATION, Field, Tissue
from demo.truth import Probe, Truth

BEAMS, SAMPLES = 128, 256
DYNAMIC_RANGE_DB = 60.0
SPECKLE_LEVEL = 0.55  # of full white: where parenchyma, 0 dB, lies before a study's own gain
NOISE_DB = -66.0  # of the receiver, before TGC raises it with depth
AXIAL_WIDTH = 1.0  # samples, standard deviation of the pulse
FOCUS = 0.45  # of the depth
LATERAL_WIDTHS = (0.8, 1.9)  # beams, standard deviation at the focus and farthest from it
CURVED_RADIUS_MM, CURVED_HALF_ANGLE = 55.0, 0.60
PHASED_HALF_ANGLE = 0.72


@dataclass(frozen=True)
class Geometry:
    """Where beams and pixels lie, for one probe and depth.

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
    """Beams and scan conversion of a probe at a depth."""
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
    """A frame uint8 [FRAME, FRAME] of painted tissue.

    Speckle is fully developed: complex Gaussian scatterers of the tissue's echogenicity, seen through a point-spread
    function that is short along the beam and widens away from the focus (Wagner et al., IEEE Trans. Sonics Ultrason. 30,
    1983); interfaces add a coherent echo. Sound is attenuated on its way there and back and received with noise; the
    gain that rises with depth (TGC) makes up for soft tissue only, so that fluid is followed by enhancement, stone by a
    shadow, and noise shows at the bottom.
    """
    plan = geometry(truth.probe, truth.depth_mm)
    scatterers = random.standard_normal((2, BEAMS, SAMPLES), dtype=np.float32)
    scatterers *= np.exp(tissue.echo * np.float32(np.log(10) / 20))
    # No interface is a perfect mirror: its echo comes and goes along it.
    scatterers[0] += tissue.mirror * (np.float32(0.3) + np.float32(0.5) * np.abs(tissue.grain(20, 20)))
    echoes = _point_spread(scatterers)
    envelope = np.hypot(echoes[0], echoes[1])
    step = truth.depth_mm / (SAMPLES - 1)
    soft = 2 * step * SOFT_ATTENUATION[tissue.probe] * np.arange(SAMPLES, dtype=np.float32)
    lost = soft + 2 * step * np.cumsum(tissue.excess, axis=1)
    received = envelope * np.exp(lost * np.float32(-np.log(10) / 20))
    received += np.float32(10 ** (NOISE_DB / 20)) * np.abs(random.standard_normal(envelope.shape, dtype=np.float32))
    sliders = np.interp(np.arange(SAMPLES), np.linspace(0, SAMPLES - 1, 5), random.uniform(-1.5, 1.5, 5))
    gain = soft + sliders.astype(np.float32) + random.uniform(-3, 3)
    level = 20 * np.log10(received) + gain
    bright = np.clip(level / np.float32(DYNAMIC_RANGE_DB) + np.float32(SPECKLE_LEVEL), 0, 1) * 255
    frame = np.zeros(FRAME * FRAME, np.uint8)
    frame[plan.pixels] = np.einsum("cn,cn->n", bright.reshape(-1)[plan.corners], plan.weights).astype(np.uint8)
    at, gray = marks(truth.region, truth.side, truth.depth_mm)
    frame[at] = gray
    return frame.reshape(FRAME, FRAME)


def _point_spread(scatterers: Field) -> Field:
    """Blur along the beam, and across it the more the further a depth is from the focus; unit mean power for speckle."""
    axial = gaussian_filter1d(scatterers, AXIAL_WIDTH, axis=2, mode="nearest", truncate=3)
    sharp, wide = (gaussian_filter1d(axial, width, axis=1, mode="nearest", truncate=3) for width in LATERAL_WIDTHS)
    depth = np.linspace(0, 1, scatterers.shape[2], dtype=np.float32)
    defocus = np.clip(np.abs(depth - FOCUS) / max(FOCUS, 1 - FOCUS), 0, 1)
    # A Gaussian of width s averages 2 s sqrt(pi) samples: their root keeps the mean power, which two quadratures share.
    gains = [np.sqrt(2 * np.pi * AXIAL_WIDTH * width) for width in LATERAL_WIDTHS]
    return (1 - defocus) * sharp * np.float32(gains[0]) + defocus * wide * np.float32(gains[1])
