"""Simulate the frames that are trained on, and convert them to what the vision encoder takes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from demo.checkpoint_files import SIDE, preprocessor_json
from demo.simulate import draw_truth, simulate
from demo.truth import Truth
from echovlm_edge.runtime.imaging.preprocess import PreprocessSettings

TRAINING_SEEDS = 10_000_000  # seed of the first training study; studies with smaller seeds are held out
CHUNK = 100  # frames that a process simulates at once
PATCHES = (SIDE // 14) ** 2


@dataclass(frozen=True)
class Frames:
    """Frames uint8 [n, SIDE, SIDE] and their truths."""

    pixels: NDArray[np.uint8]
    truths: Sequence[Truth]


def make_frames(count: int, cache: Path, console: Console) -> Frames:
    """Simulate the first `count` training frames on all cores, or read those that an earlier run left in `cache`."""
    file = cache / f"frames-{count}.npy"
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        starts = range(TRAINING_SEEDS, TRAINING_SEEDS + count, CHUNK)
        with ProcessPoolExecutor() as pool:
            chunks = list(track(pool.map(_chunk, starts), "Simulating frames", total=len(starts), console=console))
        partial = file.with_suffix(".partial.npy")
        np.save(partial, np.concatenate(chunks)[:count])
        partial.replace(file)
    return Frames(np.load(file, mmap_mode="r"), [truth_of(TRAINING_SEEDS + index) for index in range(count)])


def truth_of(seed: int) -> Truth:
    """Return a study's truth without simulating its picture."""
    return draw_truth(np.random.default_rng(seed))


def _chunk(start: int) -> NDArray[np.uint8]:
    return np.stack([seen_by_model(simulate(seed).image) for seed in range(start, start + CHUNK)])


def seen_by_model(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Resize a square frame to the model's size as preprocessing does."""
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def patches(pixels: NDArray[np.uint8]) -> Tensor:
    """Convert frames uint8 [b, SIDE, SIDE] to patches float32 [b, PATCHES, values], as `runtime.imaging.preprocess.patchify` does."""
    settings = PreprocessSettings.from_config(preprocessor_json())
    gray = torch.from_numpy(np.array(pixels)).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (settings.image_mean, settings.image_std))
    channels = (gray[:, None] - mean) / std
    squares = SIDE // 28
    cut = channels.view(-1, 3, squares, 2, 14, squares, 2, 14).permute(0, 2, 5, 3, 6, 1, 4, 7)
    return cut.reshape(-1, PATCHES, 3, 1, 196).expand(-1, -1, -1, 2, -1).reshape(-1, PATCHES, 1176)
