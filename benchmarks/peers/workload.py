"""Make W1 for all peers: the same picture in two sizes, already resized, and a prompt of the same tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.peers.peer import IMAGE_MARK, Question, Task
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.imaging.image_file import decode_image
from echovlm_edge.runtime.imaging.preprocess import PreprocessSettings, cut, fit
from echovlm_edge.runtime.profiling.measurement.requests import frame, text_of
from echovlm_edge.runtime.profiling.workloads import SMALL, W1, Workload
from echovlm_edge.runtime.prompting.prompt import Grid, PromptBuilder

CONTEXT = 1024
FORCED = 64
FORCED_BELOW = 150_000  # ordinary tokens of the vocabulary


def w1_task(folder: Path, bundle: Bundle, threads: int) -> Task:
    """Write the pictures and the task into `folder`: W1 at 391 visual tokens and at 196, and tokens to compare logits at."""
    prompts = PromptBuilder.from_bundle(bundle)
    settings = PreprocessSettings.from_config(bundle.manifest.preprocess)
    warm_up = _question(folder, replace(W1, name="warm-up"), prompts, settings, 1)
    questions = tuple(_question(folder, workload, prompts, settings, 0) for workload in (W1, SMALL[0]))
    forced = tuple(np.random.default_rng(0).integers(0, FORCED_BELOW, FORCED).tolist())
    task = Task(str(folder), threads, CONTEXT, W1.new_tokens, warm_up, questions, forced)
    task.write(folder / "task.json")
    return task


def _question(
    folder: Path, workload: Workload, prompts: PromptBuilder, settings: PreprocessSettings, number: int
) -> Question:
    (decoded,) = decode_image(frame(number, workload.width, workload.height))
    pixels = fit(decoded.pixels, settings)
    assert np.array_equal(fit(pixels, settings), pixels), "a second resizing, by a peer, changes the picture"
    patches = cut(pixels, settings)
    picture, values = folder / f"{workload.name}.npy", folder / f"{workload.name}-patches.npy"
    np.save(picture, pixels)
    np.save(values, patches.values)
    Image.fromarray(pixels).save(picture.with_suffix(".png"))

    def text_tokens(text: str) -> int:
        return len(prompts.build(text, [patches.grid]).token_ids) - workload.frame_tokens

    text = text_of(workload.text_tokens, text_tokens)
    rendered = prompts.render(text, 1)
    assert IMAGE_MARK in rendered, "the chat template marks a picture in another way"
    grid: Grid = patches.grid
    tokens = tuple(prompts.build(text, [grid]).token_ids.tolist())
    return Question(workload.name, str(picture), str(values), grid, text, rendered, tokens, workload.frame_tokens)
