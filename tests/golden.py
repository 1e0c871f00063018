"""The golden cases: what the authors' own implementation computes at every stage (tests/golden/README.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).parent / "golden"
CHECKPOINT = FOLDER / "checkpoint"
CASES = ("one_image_en", "two_images_zh", "text_only")


@dataclass(frozen=True)
class Golden:
    """One case: prompt, images and the authors' arrays."""

    name: str
    prompt: str
    rendered_prompt: str
    text: str
    images: tuple[Path, ...]
    arrays: dict[str, NDArray[np.generic]]

    @property
    def grids(self) -> list[tuple[int, int, int]]:
        """The images' patches: time, height, width."""
        if "image_grid_thw" not in self.arrays:
            return []
        return [(int(t), int(h), int(w)) for t, h, w in self.arrays["image_grid_thw"]]

    def patches(self) -> list[NDArray[np.float32]]:
        """Each image's patches."""
        if not self.images:
            return []
        ends = np.cumsum([t * h * w for t, h, w in self.grids])[:-1]
        return np.split(self.arrays["pixel_values"].astype(np.float32), ends)


def load(name: str) -> Golden:
    """Read one case."""
    case = json.loads((FOLDER / "meta.json").read_text(encoding="utf-8"))["cases"][name]
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return Golden(
            name,
            case["prompt"],
            case["rendered_prompt"],
            case["generated_text"],
            tuple(FOLDER / image for image in case["images"]),
            dict(arrays),
        )
