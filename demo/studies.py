"""Make training batches of simulated studies: frames as the model sees them, with questions and answers."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track
from torch import Tensor

from demo import corpus
from demo.checkpoint_files import SIDE, preprocessor_json
from demo.simulate import draw_truth, simulate
from demo.truth import CATALOGUE, Side, Truth
from echovlm_edge.runtime.contracts.tasks import Language, Task, prompt_for
from echovlm_edge.runtime.imaging.preprocess import PreprocessSettings

TRAINING_SEEDS = 10_000_000  # seed of the first training study; studies with smaller seeds are held out
CHUNK = 500
PATCHES = (SIDE // 14) ** 2
KINDS = sorted({finding.kind for plan in CATALOGUE.values() for finding in plan.findings})
REGIONS = list(CATALOGUE)
SIDES = [None, *Side]


@dataclass(frozen=True)
class Studies:
    """Frames uint8 [n, SIDE, SIDE] and their truths."""

    frames: NDArray[np.uint8]
    truths: Sequence[Truth]


@dataclass(frozen=True)
class Exchange:
    """One request about a study, and its answer."""

    prompt: str
    answer: str


def make_studies(count: int, cache: Path) -> Studies:
    """Simulate the first `count` training studies on all cores, or read those that an earlier run left in `cache`."""
    file = cache / f"frames-{count}.npy"
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        starts = range(TRAINING_SEEDS, TRAINING_SEEDS + count, CHUNK)
        with ProcessPoolExecutor() as pool:
            chunks = list(track(pool.map(_frames, starts), "Simulating studies", total=len(starts)))
        partial = file.with_suffix(".partial.npy")
        np.save(partial, np.concatenate(chunks)[:count])
        partial.replace(file)
    return Studies(np.load(file, mmap_mode="r"), [truth_of(TRAINING_SEEDS + index) for index in range(count)])


def truth_of(seed: int) -> Truth:
    """Return a study's truth without simulating its picture."""
    return draw_truth(np.random.default_rng(seed))


def _frames(start: int) -> NDArray[np.uint8]:
    return np.stack([seen_by_model(simulate(seed).image) for seed in range(start, start + CHUNK)])


def seen_by_model(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Simulate a square frame and resize it to the model's size as preprocessing does."""
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def patches(frames: NDArray[np.uint8]) -> Tensor:
    """Convert frames uint8 [b, SIDE, SIDE] to patches float32 [b, PATCHES, values], as `runtime.imaging.preprocess.patchify` does."""
    settings = PreprocessSettings.from_config(preprocessor_json())
    gray = torch.from_numpy(np.array(frames)).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (settings.image_mean, settings.image_std))
    channels = (gray[:, None] - mean) / std
    squares = SIDE // 28
    cut = channels.view(-1, 3, squares, 2, 14, squares, 2, 14).permute(0, 2, 5, 3, 6, 1, 4, 7)
    return cut.reshape(-1, PATCHES, 3, 1, 196).expand(-1, -1, -1, 2, -1).reshape(-1, PATCHES, 1176)


def exchange(truth: Truth, random: np.random.Generator) -> Exchange:
    """Draw a request about a study: usually a report, sometimes a diagnosis or a question."""
    language = Language.EN if random.random() < 0.5 else Language.ZH
    chance = random.random()
    if chance < 0.72:
        return Exchange(prompt_for(Task.REPORT, "", 1, language, None), corpus.write_report(truth, language, random))
    if chance < 0.86:
        return Exchange(
            prompt_for(Task.DIAGNOSIS, "", 1, language, None), corpus.write_impression(truth, language, random)
        )
    question = ("organ", "side", "size", "kind")[random.integers(4)]
    return Exchange(corpus.QUESTIONS[question, language], corpus.answer(question, truth, language))


def tokenizer_texts() -> list[str]:
    """List the texts for training the tokenizer: every prompt, and answers of each kind."""
    random = np.random.default_rng(0)
    exchanges = [exchange(truth_of(TRAINING_SEEDS + index), random) for index in range(4000)]
    return [text for made in exchanges for text in (made.prompt, made.answer)] + [
        "system\nYou are a helpful assistant.",
        "user\n",
        "assistant\n",
    ]
