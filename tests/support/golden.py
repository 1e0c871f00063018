"""Load the golden cases: the results of the authors' own implementation at every stage (tests/golden/README.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.backends import Backend, Logits, new_cache
from echovlm_edge.runtime.bundle.manifest import ModelSpec
from echovlm_edge.runtime.prompting.rotary import MultimodalRotary, vision_angles

FOLDER = Path(__file__).parents[1] / "golden"
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
        """Return the grid of the images' patches: time, height, width."""
        if "image_grid_thw" not in self.arrays:
            return []
        return [(int(t), int(h), int(w)) for t, h, w in self.arrays["image_grid_thw"]]

    def patches(self) -> list[NDArray[np.float32]]:
        """Return each image's patches."""
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


def check_stages(case: Golden, backend: Backend, spec: ModelSpec) -> Logits:
    """Check that a bundle's image embeddings and prefill logits are the authors'; returns the logits [n, vocab_size]."""
    images = [
        backend.project(backend.encode(patches, vision_angles(grid, spec.merge_size, spec.vision_head_dim)))
        for patches, grid in zip(case.patches(), case.grids, strict=True)
    ]
    if images:
        np.testing.assert_allclose(np.concatenate(images), case.arrays["image_embeds"], atol=1e-4)
    embeddings = case.arrays["hidden_states"][0].astype(np.float32)
    angles = MultimodalRotary(spec.mrope_section, spec.rope_theta).angles(case.arrays["position_ids"][:, 0])
    cache = new_cache(backend, len(embeddings) + 7)
    logits = backend.decode(embeddings, angles, 0, np.arange(len(embeddings)), cache)
    np.testing.assert_allclose(np.asarray(logits), case.arrays["prefill_logits"], atol=1e-3)
    return logits
