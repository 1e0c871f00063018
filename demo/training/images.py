"""Train the image side alone: every image token must tell what its frame shows.

Vision encoder and projector learn from heads that are discarded afterwards: linear ones, on each token alone, so that the
decoder finds the facts in whichever token it attends to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional

from demo.training.frames import PATCHES, Frames, patches
from demo.training.run import Run, Saving
from demo.truth import CATALOGUE, Side, Truth
from echovlm_edge.export.model.projector import Projector
from echovlm_edge.export.model.vision_encoder import VisionEncoder
from echovlm_edge.export.source.config import VisionConfig
from echovlm_edge.runtime.prompting.rotary import vision_angles

GRID = (1, math.isqrt(PATCHES), math.isqrt(PATCHES))
IMAGE_TOKENS = PATCHES // 4
CLASSES: tuple[tuple[Callable[[Truth], object], list[Any]], ...] = (
    (lambda truth: truth.region, [*CATALOGUE]),
    (lambda truth: truth.kind, sorted({finding.kind for plan in CATALOGUE.values() for finding in plan.findings})),
    (lambda truth: truth.side, [None, *Side]),
    (lambda truth: truth.margin, ["", "smooth", "irregular"]),
)
SIZE_WEIGHT, SIZE_BETA = 4.0, 0.1
ENCODED_AT_ONCE = 64


@dataclass(frozen=True)
class ImageOptions:
    """Settings of the image side's training; the defaults made the committed checkpoint."""

    frames: int = 48_000
    steps: int = 1_500
    batch: int = 64
    rate: float = 1.5e-3


class ImageSide(nn.Module):
    """Vision encoder and projector for training, batched, and the heads that read their tokens."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.vision_encoder, self.projector = VisionEncoder(config), Projector(config)
        self.classes = nn.ModuleList(nn.Linear(config.hidden_size, len(values)) for _, values in CLASSES)
        self.size = nn.Linear(config.hidden_size, 1)
        angles = vision_angles(GRID, config.spatial_merge_size, config.head_dim)
        self.angles = torch.from_numpy(angles.cos)[None], torch.from_numpy(angles.sin)[None]
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=1 / math.sqrt(parameter.shape[-1]))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def tokens(self, values: Tensor) -> Tensor:
        """Run patches [b, PATCHES, values] to image tokens [b, IMAGE_TOKENS, hidden_size]."""
        x = self.vision_encoder.patch_embed(values)
        for block in self.vision_encoder.blocks:
            x = block(x, *self.angles)
        tokens: Tensor = self.projector(x.flatten(0, 1)).unflatten(0, (len(values), IMAGE_TOKENS))
        return tokens

    def loss(self, tokens: Tensor, truths: Sequence[Truth]) -> Tensor:
        """Compute the heads' loss on image tokens: cross-entropies, and the error of log(size) of the findings that have one."""
        loss = torch.zeros(())
        for head, (fact, values) in zip(self.classes, CLASSES, strict=True):
            target = torch.tensor([values.index(fact(truth)) for truth in truths]).repeat_interleave(IMAGE_TOKENS)
            loss = loss + functional.cross_entropy(head(tokens).flatten(0, 1), target)
        sizes = torch.tensor([math.log(truth.size_mm) if truth.size_mm else math.nan for truth in truths])
        known = ~sizes.isnan()
        if not known.any():
            return loss
        said = self.size(tokens[known])[..., 0]
        return loss + SIZE_WEIGHT * functional.smooth_l1_loss(said, sizes[known, None].expand_as(said), beta=SIZE_BETA)


def train_images(model: ImageSide, frames: Frames, options: ImageOptions, seed: int, saving: Saving) -> None:
    """Train the image side, then round it to bfloat16, as it is published: the decoder learns from the tokens that are served."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=0.02, betas=(0.9, 0.98))
    run = Run("images", options.steps, optimizer, model, saving)
    for step in run.steps():
        random = np.random.default_rng([seed, 0, step])
        chosen = np.sort(random.choice(len(frames.truths), options.batch, replace=False))
        tokens = model.tokens(patches(frames.pixels[chosen]))
        run.learn(model.loss(tokens, [frames.truths[index] for index in chosen]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))


def encode(model: ImageSide, frames: Frames, file: Path, console: Console) -> None:
    """Encode every frame to image tokens float16 [frames, IMAGE_TOKENS, hidden_size] in `file`, unless an earlier run has."""
    if not file.is_file():
        partial = file.with_suffix(".partial.npy")
        starts = range(0, len(frames.truths), ENCODED_AT_ONCE)
        with torch.no_grad():
            encoded = [
                model.tokens(patches(frames.pixels[start : start + ENCODED_AT_ONCE])).numpy().astype(np.float16)
                for start in track(starts, "Encoding frames", console=console)
            ]
        np.save(partial, np.concatenate(encoded))
        partial.replace(file)
