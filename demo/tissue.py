"""Tissue as a plane of echogenicity and attenuation, painted shape by shape."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from demo.truth import Probe

Field = NDArray[np.float32]
Depth = NDArray[np.floating] | float

ANECHOIC = -60.0  # dB: fluid scatters almost nothing
STONE_ATTENUATION = 6.0  # dB/mm one way
# One way, dB/mm: 0.5 dB/cm/MHz at each probe's usual frequency, reduced for the low dynamic range of a small picture.
SOFT_ATTENUATION = {Probe.LINEAR: 0.2, Probe.CURVED: 0.08, Probe.PHASED: 0.05}


@dataclass
class Tissue:
    """The insonified plane.

    Attributes:
        x: lateral position of each point in mm, 0 at the probe's middle, float32 [beams, samples].
        z: depth in mm, likewise.
        echo: echogenicity in dB, 0 for parenchyma.
        probe: sets soft tissue's attenuation, which TGC makes up for.
        excess: attenuation over soft tissue's, dB/mm one way.
    """

    x: Field
    z: Field
    probe: Probe
    echo: Field = field(init=False)
    excess: Field = field(init=False)

    def __post_init__(self) -> None:
        """Start as homogeneous parenchyma."""
        self.echo = np.zeros_like(self.x)
        self.excess = np.zeros_like(self.x)

    def paint(self, inside: Field, echo: float, excess: float = 0.0) -> None:
        """Blend towards an echogenicity (dB) and excess attenuation (dB/mm) by `inside`, 0 to 1."""
        self.echo += inside * (np.float32(echo) - self.echo)
        self.excess += inside * (np.float32(excess) - self.excess)

    def fluid(self, inside: Field) -> None:
        """Paint fluid: no echo, hardly any attenuation, so that what lies behind is enhanced."""
        self.paint(inside, ANECHOIC, -SOFT_ATTENUATION[self.probe])

    def stone(self, inside: Field) -> None:
        """Paint stone or calcium: a bright echo that casts a shadow."""
        self.paint(inside, 26.0, STONE_ATTENUATION)

    def ellipse(
        self,
        centre: tuple[float, float],
        radii: tuple[float, float],
        tilt: float = 0.0,
        edge: float = 0.6,
        lobes: Field | None = None,
    ) -> Field:
        """Return an ellipse's mask: 1 inside, falling to 0 over `edge` mm.

        Args:
            centre: x and z in mm.
            radii: along the tilted x and z axes, in mm.
            tilt: radians, positive turns x towards z.
            edge: width of the transition in mm.
            lobes: amplitudes of the 2nd, 3rd, … harmonic of the outline, for an irregular margin.
        """
        dx, dz = self.x - centre[0], self.z - centre[1]
        along = (dx * np.cos(tilt) + dz * np.sin(tilt)) / radii[0]
        across = (-dx * np.sin(tilt) + dz * np.cos(tilt)) / radii[1]
        radius = np.hypot(along, across)
        if lobes is not None:
            angle = np.arctan2(across, along)
            outline = 1 + sum(lobe * np.cos((order + 2) * angle + 7 * lobe) for order, lobe in enumerate(lobes))
            radius = radius / outline
        return _soft((1 - radius) * min(radii) / edge)

    def band(self, top: Depth, bottom: Depth, edge: float = 0.4) -> Field:
        """Return the mask between two depths in mm, which may vary along x."""
        return _soft((self.z - top) / edge) * _soft((bottom - self.z) / edge)

    def ring(self, inside: Field, gain: float) -> None:
        """Brighten a wall along an outline by up to `gain` dB."""
        self.echo += gain * 4 * inside * (1 - inside)


def _soft(distance: NDArray[np.floating]) -> Field:
    """Return a smooth step from 0 to 1 around distance 0."""
    return np.clip(distance + 0.5, 0, 1).astype(np.float32)
