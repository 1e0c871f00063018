"""Train the demo checkpoint: a small EchoVLM, on simulated studies, from a seed.

    python -m demo.train --output demo/checkpoint

First the vision side alone is trained to classify region, finding, side and size from its tokens (with heads that are discarded
afterwards); then the whole model is trained to generate texts. A killed run resumes from its last saved step.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from demo.checkpoint_files import (
    CHAT_TEMPLATE,
    config_json,
    token_id,
    train_tokenizer,
    write_files,
    write_weights,
)
from demo.studies import (
    KINDS,
    PATCHES,
    REGIONS,
    SIDES,
    Exchange,
    Studies,
    exchange,
    make_studies,
    patches,
    tokenizer_texts,
)
from demo.truth import Truth
from echovlm_edge.export.config import EchoVLMConfig
from echovlm_edge.export.model.decoder import Decoder
from echovlm_edge.export.model.dual_path_moe import DualPathMoE
from echovlm_edge.export.model.projector import Projector
from echovlm_edge.export.model.vision_encoder import VisionEncoder
from echovlm_edge.export.model.weights import Parts
from echovlm_edge.runtime.contracts.command import run_command
from echovlm_edge.runtime.prompting.prompt import PromptBuilder
from echovlm_edge.runtime.prompting.rotary import MultimodalRotary, vision_angles
from echovlm_edge.runtime.resources.processors import usable_processors

GRID = (1, math.isqrt(PATCHES), math.isqrt(PATCHES))
IMAGE_TOKENS = PATCHES // 4


@dataclass(frozen=True)
class TrainingOptions:
    """Training settings; the defaults made the committed checkpoint."""

    seed: int = 0
    studies: int = 48_000
    vision_steps: int = 1_800
    vision_batch: int = 64
    steps: int = 1_300
    batch: int = 40
    vision_rate: float = 1.5e-3
    rate: float = 1.5e-3
    heads_weight: float = 0.15  # weight of the image heads' loss while the whole model is trained
    save_every: int = 200


class ImageHeads(nn.Module):
    """Reads region, finding, side and size from the image tokens; used only in training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(IMAGE_TOKENS * width, 192)
        self.region, self.kind = nn.Linear(192, len(REGIONS)), nn.Linear(192, len(KINDS))
        self.side, self.size = nn.Linear(192, len(SIDES)), nn.Linear(192, 1)

    def forward(self, tokens: Tensor, truths: Sequence[Truth]) -> Tensor:
        """Compute the loss on image tokens [b, IMAGE_TOKENS, width]: cross-entropies, and the error of log(size)."""
        mixed = functional.gelu(self.mix(tokens.flatten(1)))
        loss = functional.cross_entropy(self.region(mixed), torch.tensor([REGIONS.index(t.region) for t in truths]))
        loss = loss + functional.cross_entropy(self.kind(mixed), torch.tensor([KINDS.index(t.kind) for t in truths]))
        loss = loss + functional.cross_entropy(self.side(mixed), torch.tensor([SIDES.index(t.side) for t in truths]))
        sizes = torch.tensor([math.log(t.size_mm) if t.size_mm else math.nan for t in truths])
        known = ~sizes.isnan()
        if not known.any():
            return loss
        return loss + 4 * functional.smooth_l1_loss(self.size(mixed)[known, 0], sizes[known], beta=0.1)


class DemoModel(nn.Module):
    """The model's parts for training: batched, without a KV cache."""

    def __init__(self, config: EchoVLMConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_encoder, self.projector = VisionEncoder(config.vision), Projector(config.vision)
        self.decoder = Decoder(config.decoder)
        self.embedding = nn.Parameter(torch.empty(config.decoder.vocab_size, config.decoder.hidden_size))
        self.heads = ImageHeads(config.decoder.hidden_size)
        angles = vision_angles(GRID, config.vision.spatial_merge_size, config.vision.head_dim)
        self.angles = torch.from_numpy(angles.cos)[None], torch.from_numpy(angles.sin)[None]
        self._initialise()
        self.decoder.lm_head.weight = self.embedding  # tied to the token embedding

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02 if name == "embedding" else 1 / math.sqrt(parameter.shape[-1]))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        for block in self.decoder.moe_blocks():
            nn.init.normal_(block.router, std=0.02)
            nn.init.zeros_(block.coefficient_bias)

    def image_tokens(self, values: Tensor) -> Tensor:
        """Run patches [b, PATCHES, values] to image tokens [b, IMAGE_TOKENS, hidden_size]."""
        x = self.vision_encoder.patch_embed(values)
        for block in self.vision_encoder.blocks:
            x = block(x, *self.angles)
        return self.projector(x.flatten(0, 1)).unflatten(0, (len(values), IMAGE_TOKENS))

    def forward(self, batch: Batch, images: Tensor) -> Tensor:
        """Compute the logits [answers' tokens, vocabulary] of a batch."""
        embeddings = self.embedding[batch.ids]
        embeddings = embeddings.masked_scatter(batch.is_image[..., None], images)
        decoder, (rows, length) = self.config.decoder, batch.ids.shape
        shape = (rows, decoder.num_key_value_heads, length, decoder.head_dim)
        keys, values = ([torch.zeros(shape) for _ in self.decoder.layers] for _ in range(2))
        angles = (table.expand(rows, -1, -1) for table in (batch.cos, batch.sin))
        past = torch.zeros(rows, dtype=torch.int64)
        logits, _, _ = self.decoder(embeddings, *angles, past, batch.answer_rows, keys, values)
        return logits


@dataclass(frozen=True)
class Batch:
    """Token ids int64 [b, s], padded at the end, and the positions of the answers."""

    ids: Tensor
    is_image: Tensor
    is_text: Tensor  # not padding
    answer_rows: Tensor  # flat positions whose next token is part of the answer
    targets: Tensor
    cos: Tensor  # [1, s, head_dim / 2]
    sin: Tensor


class BatchMaker:
    """Make batches from exchanges, with the prompt rendered as in serving."""

    def __init__(self, tokenizer: Tokenizer, config: EchoVLMConfig) -> None:
        self._prompts = PromptBuilder(tokenizer, CHAT_TEMPLATE, config.image_token_id, config.vision.spatial_merge_size)
        self._tokenizer = tokenizer
        self._image = config.image_token_id
        self._rotary = MultimodalRotary(config.decoder.mrope_section, config.decoder.rope_theta)
        self._end, self._padding = token_id("<|im_end|>"), token_id("<|endoftext|>")

    def make(self, exchanges: Sequence[Exchange]) -> Batch:
        """Pad the sequences, and mark the answers."""
        sequences, starts, longest = [], [], None
        for made in exchanges:
            prompt = self._prompts.build(made.prompt, [GRID])
            answer = [*self._tokenizer.encode(made.answer, add_special_tokens=False).ids, self._end]
            sequences.append([*prompt.token_ids.tolist(), *answer])
            starts.append(len(prompt.token_ids))
            longest = longest or prompt
        assert longest is not None
        length = max(map(len, sequences))
        ids = torch.tensor([sequence + [self._padding] * (length - len(sequence)) for sequence in sequences])
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        columns = torch.arange(length)
        answers = (columns >= torch.tensor(starts)[:, None] - 1) & (columns < lengths[:, None] - 1)
        rows = answers.flatten().nonzero()[:, 0]
        # The image comes first, so the positions of every sequence are a prefix of the longest one's.
        positions = longest.positions[:, : starts[0]]
        onward = np.arange(length - positions.shape[1]) + longest.next_position
        angles = self._rotary.angles(np.concatenate([positions, np.tile(onward, (3, 1))], axis=1))
        return Batch(
            ids,
            ids == self._image,
            columns < lengths[:, None],
            rows,
            ids.flatten()[rows + 1],
            torch.from_numpy(angles.cos)[None],
            torch.from_numpy(angles.sin)[None],
        )


class LoadBalance:
    """Compute the routers' load-balancing loss over a batch (Fedus et al. 2021, equation 4, summed over top-k choices)."""

    def __init__(self, decoder: Decoder) -> None:
        self._inputs: list[tuple[DualPathMoE, Tensor]] = []
        for block in decoder.moe_blocks():
            block.register_forward_pre_hook(self._record)

    def _record(self, block: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(block, DualPathMoE)
        self._inputs.append((block, inputs[0]))

    def loss(self, is_text: Tensor) -> Tensor:
        """Compute experts x sum of (share of tokens x mean probability), averaged over layers; it is top_k for a perfectly even load."""
        losses = []
        for block, x in self._inputs:
            probabilities = functional.linear(x[is_text], block.router).softmax(-1)
            chosen = torch.zeros_like(probabilities).scatter(1, probabilities.topk(block.top_k, dim=-1).indices, 1.0)
            losses.append(len(block.router) * (chosen.mean(0) * probabilities.mean(0)).sum())
        self._inputs.clear()
        return torch.stack(losses).mean()


def train(options: TrainingOptions, output: Path, cache: Path, console: Console) -> None:
    """Train and write the checkpoint to `output`; `cache` keeps simulated studies and the last saved step."""
    torch.manual_seed(options.seed)
    torch.use_deterministic_algorithms(True)  # or gradients of gathered rows are summed in random order
    torch.set_num_threads(usable_processors())
    tokenizer = train_tokenizer(tokenizer_texts())
    config = EchoVLMConfig.from_json(config_json(), "the demo's config")
    model = DemoModel(config)
    studies = make_studies(options.studies, cache)
    state = cache / "training.pt"
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        _train_image_side(model, studies, options, state, progress)
        _train_whole(model, BatchMaker(tokenizer, config), studies, options, state, progress)
    write_files(output, tokenizer)
    parts = Parts(model.vision_encoder, model.projector, model.decoder)
    write_weights(output, parts, model.embedding, config)
    state.unlink(missing_ok=True)


def _train_image_side(
    model: DemoModel, studies: Studies, options: TrainingOptions, state: Path, progress: Progress
) -> None:
    parameters = [*model.vision_encoder.parameters(), *model.projector.parameters(), *model.heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=options.vision_rate, weight_decay=0.02, betas=(0.9, 0.98))
    run = Run("image side", options.vision_steps, options, optimizer, model, state, progress)
    for step in run.steps():
        chosen = _sample(options.seed, "image side", step, options.vision_batch, len(studies.truths))
        tokens = model.image_tokens(patches(studies.frames[chosen]))
        loss = model.heads(tokens, [studies.truths[index] for index in chosen])
        run.learn(loss)


def _train_whole(
    model: DemoModel, maker: BatchMaker, studies: Studies, options: TrainingOptions, state: Path, progress: Progress
) -> None:
    image_side = [*model.vision_encoder.parameters(), *model.projector.parameters(), *model.heads.parameters()]
    groups = [
        {"params": image_side, "lr": 0.3 * options.rate},
        {"params": [*model.decoder.parameters()], "lr": options.rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.02, betas=(0.9, 0.98))
    balance = LoadBalance(model.decoder)
    coefficient = config_json()["router_aux_loss_coef"]
    run = Run("whole model", options.steps, options, optimizer, model, state, progress)
    for step in run.steps():
        chosen = _sample(options.seed, "whole model", step, options.batch, len(studies.truths))
        truths = [studies.truths[index] for index in chosen]
        random = np.random.default_rng([options.seed, 1, step])
        batch = maker.make([exchange(truth, random) for truth in truths])
        images = model.image_tokens(patches(studies.frames[chosen]))
        words = functional.cross_entropy(model(batch, images), batch.targets)
        loss = words + coefficient * balance.loss(batch.is_text) + options.heads_weight * model.heads(images, truths)
        run.learn(loss)


def _sample(seed: int, phase: str, step: int, batch: int, count: int) -> list[int]:
    """Choose the studies of a step: the same for a seed, even if the run is killed and resumed."""
    random = np.random.default_rng([seed, len(phase), step])
    return sorted(random.choice(count, batch, replace=False).tolist())


class Run:
    """Run one training phase: learning rate, clipping, progress, and saving so that a killed run can be resumed."""

    def __init__(
        self,
        phase: str,
        steps: int,
        options: TrainingOptions,
        optimizer: torch.optim.Optimizer,
        model: DemoModel,
        state: Path,
        progress: Progress,
    ) -> None:
        self._phase, self._steps, self._every = phase, steps, options.save_every
        self._optimizer, self._model, self._state, self._progress = optimizer, model, state, progress
        self._task = progress.add_task(phase, total=steps)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        self._smooth = 0.0

    def _rate(self, step: int) -> float:
        warm = min(1.0, (step + 1) / 100)
        return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self._steps))))

    def steps(self) -> range:
        """Yield the remaining steps."""
        if self._state.is_file():
            saved = torch.load(self._state, weights_only=True)
            self._model.load_state_dict(saved["model"])
            if saved["phase"] != self._phase:
                done = self._phase == "image side"  # the saved step belongs to the other phase
                self._progress.update(self._task, completed=self._steps if done else 0)
                return range(0) if done else range(self._steps)
            self._optimizer.load_state_dict(saved["optimizer"])
            self._schedule.load_state_dict(saved["schedule"])
            self._progress.update(self._task, completed=saved["step"])
            return range(saved["step"], self._steps)
        return range(self._steps)

    def learn(self, loss: Tensor) -> None:
        """Make one optimizer step."""
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._schedule.step()
        step = self._schedule.last_epoch
        self._smooth = 0.98 * self._smooth + 0.02 * loss.item()
        shown = self._smooth / (1 - 0.98 ** min(step, 1000))
        self._progress.update(self._task, advance=1, description=f"{self._phase}, loss {shown:.3f}")
        if step % self._every == 0 or step == self._steps:
            partial = self._state.with_suffix(".partial")
            saved = {
                "phase": self._phase,
                "step": step,
                "model": self._model.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "schedule": self._schedule.state_dict(),
            }
            torch.save(saved, partial)
            partial.replace(self._state)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    default = TrainingOptions()
    parser = argparse.ArgumentParser(prog="demo.train", description="Train the demo checkpoint on simulated studies.")
    parser.add_argument("--output", type=Path, default=Path("demo/checkpoint"), metavar="DIR")
    parser.add_argument(
        "--cache", type=Path, default=Path("build/demo"), metavar="DIR", help="studies, and the last saved step"
    )
    for name in ("seed", "studies", "vision_steps", "vision_batch", "steps", "batch"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(default, name), metavar="N")
    options = parser.parse_args(arguments)
    chosen = {name: value for name, value in vars(options).items() if name not in ("output", "cache")}

    def command() -> int:
        train(TrainingOptions(**chosen), options.output, options.cache, Console(stderr=True))
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
