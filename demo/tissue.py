"""Tissue as the beams meet it: echogenicity, attenuation and interfaces at every point, painted shape by shape."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demo.truth import Probe

Field = NDArray[np.float32]

ANECHOIC = -60.0  # dB: fluid scatters almost nothing
STONE_ATTENUATION = 6.0  # dB/mm one way
# One way, dB/mm: 0.3 dB/cm/MHz at each probe's usual 7.5, 3 and 2 MHz. Soft tissue has 0.5 to 0.7; harmonic imaging and
# the small dynamic range of a picture leave about half of that to be seen.
SOFT_ATTENUATION = {Probe.LINEAR: 0.22, Probe.CURVED: 0.09, Probe.PHASED: 0.06}
WARP = 0.012  # of the depth: how far anatomy strays from its plan, standard deviation


@dataclass
class Tissue:
    """The insonified plane.

    Attributes:
        x: lateral position of each point in mm, 0 at the probe's middle, float32 [beams, samples].
        z: depth in mm, likewise.
        probe: sets soft tissue's attenuation, which TGC makes up for.
        random: the study's own.
        u, v: x and z displaced by a few per cent, so that no two people's anatomy is alike.
        echo: echogenicity in dB, 0 for parenchyma.
        excess: attenuation over soft tissue's, dB/mm one way.
        mirror: amplitude of specular echoes, where an interface meets the beam.
    """

    x: Field
    z: Field
    probe: Probe
    random: np.random.Generator
    u: Field = field(init=False)
    v: Field = field(init=False)
    echo: Field = field(init=False)
    excess: Field = field(init=False)
    mirror: Field = field(init=False)

    def __post_init__(self) -> None:
        """Start as parenchyma without a structure."""
        depth = float(self.z.max())
        self.u = self.x + WARP * depth * self.grain(5, 6)
        self.v = self.z + WARP * depth * self.grain(5, 6)
        self.echo = np.zeros_like(self.x)
        self.excess = np.zeros_like(self.x)
        self.mirror = np.zeros_like(self.x)

    def grain(self, across: int, along: int) -> Field:
        """A smooth random field of unit variance with so many bumps across the beams and along them."""
        left, right = _basis(self.x.shape[0], across), _basis(self.x.shape[1], along)
        bumps = self.random.standard_normal((left.shape[1], right.shape[1]), dtype=np.float32)
        # einsum, not @: a BLAS starts threads for products as small as these, and sums in an order of its own.
        return np.einsum("ab,sb->as", np.einsum("ai,ij->aj", left, bumps), right)

    def paint(self, inside: Field, echo: float | Field, excess: float = 0.0, interface: float = 0.0) -> None:
        """Blend towards an echogenicity (dB) and excess attenuation (dB/mm) by `inside`, 0 to 1.

        `interface` is the amplitude of the specular echo where the outline is crossed by the beam, 1 being speckle's.
        """
        self.echo += inside * (np.float32(echo) - self.echo)
        self.excess += inside * (np.float32(excess) - self.excess)
        self.mirror *= 1 - inside
        if interface:
            self.mirror[:, 1:] += np.float32(interface) * np.abs(np.diff(inside, axis=1))

    def fluid(self, inside: Field, interface: float = 3.0) -> None:
        """Paint fluid: no echo, hardly any attenuation, so that what lies behind is enhanced."""
        self.paint(inside, ANECHOIC, -SOFT_ATTENUATION[self.probe], interface)

    def stone(self, inside: Field) -> None:
        """Paint stone or calcium: a bright echo that leaves a shadow."""
        self.paint(inside, 24.0, STONE_ATTENUATION, 12.0)

    def ellipse(
        self,
        centre: tuple[float, float],
        radii: tuple[float, float],
        tilt: float = 0.0,
        edge: float = 0.6,
        lobes: Field | None = None,
        exact: bool = False,
    ) -> Field:
        """An ellipse's inside, 1 to 0 over `edge` mm.

        Args:
            centre: x and z in mm.
            radii: along the tilted x and z axes, in mm.
            tilt: radians, positive turns x towards z.
            edge: width of the transition in mm.
            lobes: amplitudes of the 2nd, 3rd, … harmonic of the outline, for an irregular margin. The outline is scaled
                so that its largest diameter stays twice the larger radius.
            exact: true to size, as a measured lesion is; otherwise displaced with the anatomy.
        """
        dx, dz = (self.x if exact else self.u) - centre[0], (self.z if exact else self.v) - centre[1]
        along = (dx * np.cos(tilt) + dz * np.sin(tilt)) / np.float32(radii[0])
        across = (dz * np.cos(tilt) - dx * np.sin(tilt)) / np.float32(radii[1])
        radius = np.hypot(along, across)
        if lobes is not None:
            turn = np.linspace(0, 2 * np.pi, 72, endpoint=False)
            outline = _outline(turn, lobes) * np.array([radii[0] * np.cos(turn), radii[1] * np.sin(turn)])
            diameter = np.hypot(*(outline[:, :, None] - outline[:, None, :])).max()
            radius = radius * np.float32(diameter / (2 * max(radii))) / _outline(np.arctan2(across, along), lobes)
        return _soft((1 - radius) * np.float32(min(radii) / edge))

    def band(self, top: Field | float, bottom: Field | float, edge: float = 0.4) -> Field:
        """Between two depths in mm, which may vary along x."""
        return _soft((self.v - top) / edge) * _soft((bottom - self.v) / edge)

    def ring(self, inside: Field, gain: float) -> None:
        """Brighten a wall along an outline by up to `gain` dB."""
        self.echo += np.float32(gain * 4) * inside * (1 - inside)

    def wall(self, inside: Field, echo: float) -> None:
        """Paint a wall of its own echogenicity along an outline."""
        self.paint(np.minimum(1, 5 * inside * (1 - inside)), echo)


def _outline(angle: NDArray[Any], lobes: Field) -> NDArray[Any]:
    """Distance from the centre by direction, 1 on average."""
    outline = np.ones_like(angle)
    for order, lobe in enumerate(lobes):
        outline += lobe * np.cos((order + 2) * angle + 7 * lobe)
    return outline


def _soft(distance: Field) -> Field:
    """A smooth step from 0 to 1 around distance 0."""
    return np.clip(distance + np.float32(0.5), 0, 1).astype(np.float32, copy=False)


@lru_cache(maxsize=32)
def _basis(points: int, bumps: int) -> Field:
    """Gaussian bumps [points, bumps + 2] whose random sum has unit variance everywhere."""
    at = np.linspace(0, bumps - 1, points)[:, None]
    bump = np.exp(-0.5 * ((at - np.arange(-1, bumps + 1)) / 0.6) ** 2)
    return (bump / np.sqrt((bump**2).sum(1, keepdims=True))).astype(np.float32)
