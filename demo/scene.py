"""One study being painted, and the lesions that several regions share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from demo.tissue import Tissue
from demo.truth import Side, Truth


@dataclass(frozen=True)
class Scene:
    """A study's tissue, what it shall show, and its random numbers."""

    tissue: Tissue
    truth: Truth
    random: np.random.Generator

    @property
    def mirror(self) -> float:
        """Anatomy is drawn for the right side and mirrored for the left."""
        return -1.0 if self.truth.side is Side.LEFT else 1.0

    def near(self, value: float, spread: float) -> float:
        """A value that varies from person to person: uniform within `spread` of it."""
        return float(self.random.uniform(value - spread, value + spread))

    @property
    def half_size(self) -> float:
        """Half the finding's size in mm; only for findings with a size."""
        assert self.truth.size_mm is not None
        return self.truth.size_mm / 2

    def radii(self) -> tuple[float, float]:
        """A rounded lesion's radii in mm: the larger one is half its size."""
        return self.half_size, self.half_size * self.near(0.82, 0.1)


def cyst(scene: Scene, centre: tuple[float, float]) -> None:
    """Round fluid behind a thin bright wall; enhancement follows from its low attenuation."""
    inside = scene.tissue.ellipse(centre, scene.radii(), scene.near(0, 0.2), exact=True)
    scene.tissue.ring(inside, 4)
    scene.tissue.fluid(inside, 6)


def nodule(scene: Scene, centre: tuple[float, float], echo: float) -> None:
    """A solid lesion with faint inner echoes; an irregular one has a lobed outline and shadows a little."""
    tissue, irregular = scene.tissue, scene.truth.margin == "irregular"
    signs = scene.random.choice([-1, 1], 4).astype(np.float32)
    lobes = signs * np.array([0.04, 0.12, 0.09, 0.1], np.float32) if irregular else None
    inside = tissue.ellipse(centre, scene.radii(), scene.near(0, 0.25), lobes=lobes, exact=True)
    tissue.paint(inside, echo + 1.5 * tissue.grain(14, 14), 0.3 if irregular else 0.0, 0 if irregular else 1.5)


def calcification(scene: Scene, centre: tuple[float, float], size: float) -> None:
    """A bright shallow arc whose shadow runs to the bottom."""
    scene.tissue.stone(scene.tissue.ellipse(centre, (size / 2, size / 5), edge=0.4, exact=True))
