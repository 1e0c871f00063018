"""Train the decoder on conversations about studies whose image tokens do not change any more.

A study's images are run through the decoder once, and all its conversations go on from the same keys and values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from demo.training.conversations import MOST_FRAMES, Beginning, Branches, Layout, StudyPool, draw_conversations
from demo.training.run import Run, Saving
from demo.truth import Truth
from echovlm_edge.export.model.decoder import Decoder
from echovlm_edge.export.model.dual_path_moe import DualPathMoE
from echovlm_edge.export.source.config import DecoderConfig

PART = 16  # conversations that are padded to one length
COMPARING_LAYER = 1  # of three: what it finds, the last one can answer with
CLAIM_WEIGHT = 1.0
LOOK_BACK, LOOK_BACK_PAIRS = 5.0, 4  # a neighbour's weight is then a twentieth


@dataclass(frozen=True)
class TextOptions:
    """Settings of the decoder's training; the defaults made the committed checkpoint."""

    steps: int = 2_000
    studies: int = 12  # a step
    exchanges: int = 8  # about each study, in conversations of one to three
    rate: float = 1.5e-3
    noise: float = 0.1  # on image tokens, of their standard deviation: coarse weights cost as much
    balance: float = 0.02  # weight of the routers' loss


class TextSide(nn.Module):
    """Decoder and token embedding for training: batched, over keys and values that carry gradients."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = Decoder(config)
        self.embedding = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02 if name == "embedding" else 1 / math.sqrt(parameter.shape[-1]))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        look_back(self.decoder.get_parameter("layers.0.self_attn.qkv_proj.bias"), config)
        for block in self.decoder.moe_blocks():
            nn.init.normal_(block.router, std=0.02)
            nn.init.zeros_(block.coefficient_bias)
        self.decoder.lm_head.weight = self.embedding  # tied to the token embedding
        self.claims = nn.Linear(config.hidden_size, 1)  # discarded afterwards
        self._compared: list[Tensor] = []
        self.decoder.layers[COMPARING_LAYER].register_forward_hook(
            lambda _, __, outputs: self._compared.append(outputs[0])
        )

    def loss(self, beginning: Beginning, images: Tensor, branches: Sequence[Branches]) -> Tensor:
        """Compute the mean cross-entropy of the conversations' tokens, by their weights, and of whether claims are true.

        The second is read from a layer within the decoder, where a claim ends: to compare words with images is learnt there in a
        few hundred steps, but hardly from answers of one letter.

        Args:
            beginning: of every study's prompt.
            images: image tokens [studies, tokens of a study's frames, hidden_size].
            branches: conversations that go on from it, in parts of similar length.
        """
        rows = self.embedding[beginning.ids].expand(len(images), -1, -1)
        rows = rows.masked_scatter(beginning.is_image[:, None], images)
        length = rows.shape[1]
        empty = [self._empty(len(images), length) for _ in range(2 * len(self.decoder.layers))]
        keys, values = empty[::2], empty[1::2]
        _, keys, values = self._run(
            rows, beginning.cos, beginning.sin, 0, keys, values, torch.zeros(0, dtype=torch.int64)
        )
        total, weight = torch.zeros(()), torch.zeros(())
        claims = []
        for part in branches:
            count, longest = part.ids.shape
            more = self._empty(count, longest)
            onward_keys, onward_values = (
                [torch.cat((kept[part.studies], more), 2) for kept in caches] for caches in (keys, values)
            )
            predicting = part.weights.flatten().nonzero()[:, 0]
            logits, _, _ = self._run(
                self.embedding[part.ids], part.cos, part.sin, length, onward_keys, onward_values, predicting
            )
            errors = functional.cross_entropy(logits, part.ids.flatten()[predicting + 1], reduction="none")
            weights = part.weights.flatten()[predicting]
            total, weight = total + (errors * weights).sum(), weight + weights.sum()
            claims.append(self.claims(self._compared[-1][part.claims[:, 0], part.claims[:, 1]])[:, 0])
        self._compared.clear()
        are_true = torch.cat([part.are_true for part in branches])
        claim_loss = functional.binary_cross_entropy_with_logits(torch.cat(claims), are_true)
        return total / weight + CLAIM_WEIGHT * claim_loss

    def _run(
        self,
        rows: Tensor,
        cos: Tensor,
        sin: Tensor,
        past: int,
        keys: list[Tensor],
        values: list[Tensor],
        logit_rows: Tensor,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        angles = (table.expand(len(rows), -1, -1) for table in (cos, sin))
        logits, keys, values = self.decoder(rows, *angles, torch.full((len(rows),), past), logit_rows, keys, values)
        return logits, keys, values

    def _empty(self, rows: int, length: int) -> Tensor:
        return torch.zeros(rows, self.config.num_key_value_heads, length, self.config.head_dim)


def look_back(bias: Tensor, config: DecoderConfig) -> None:
    """Make heads of the first layer begin by attending to the 1st, 2nd, 3rd … token before each, so that an option knows its letter.

    A query's bias is the key's turned back by n positions: their product over the fastest rotary pairs is largest n tokens
    away (Su et al. 2021, equation 16).

    Args:
        bias: of the q, k and v projection, [(heads + 2 x kv_heads) x head_dim], changed in place.
        config: of the decoder.
    """
    half, pairs = config.head_dim // 2, torch.arange(LOOK_BACK_PAIRS)
    angles = config.rope_theta ** (-pairs / half)
    heads = bias.view(-1, config.head_dim)
    with torch.no_grad():
        for head in range(config.num_attention_heads // config.num_key_value_heads):  # those of the first keys
            heads[head, pairs] = LOOK_BACK * torch.cos(angles * (head + 1))
            heads[head, half + pairs] = -LOOK_BACK * torch.sin(angles * (head + 1))
        heads[config.num_attention_heads, pairs] = LOOK_BACK


class LoadBalance:
    """Compute the routers' load-balancing loss (Fedus et al. 2021, equation 4, summed over top-k choices)."""

    def __init__(self, decoder: Decoder) -> None:
        self._blocks = decoder.moe_blocks()
        self._inputs: list[Tensor] = []
        for block in self._blocks:
            block.register_forward_pre_hook(self._record)

    def _record(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._inputs.append(inputs[0])

    def loss(self, are_text: Sequence[Tensor | None]) -> Tensor:
        """Compute experts x sum of (share of tokens x mean probability), averaged over layers; it is top_k for a perfectly even load.

        Args:
            are_text: for each run of the decoder since the last call, which of its tokens count, [b, s]; None for all.
        """
        losses = []
        for layer, block in enumerate(self._blocks):
            runs = zip(self._inputs[layer :: len(self._blocks)], are_text, strict=True)
            tokens = torch.cat([x.flatten(0, 1) if kept is None else x[kept] for x, kept in runs])
            losses.append(self._of_block(block, tokens))
        self._inputs.clear()
        return torch.stack(losses).mean()

    @staticmethod
    def _of_block(block: DualPathMoE, tokens: Tensor) -> Tensor:
        probabilities = functional.linear(tokens, block.router).softmax(-1)
        chosen = torch.zeros_like(probabilities).scatter(1, probabilities.topk(block.top_k, dim=-1).indices, 1.0)
        return len(block.router) * (chosen.mean(0) * probabilities.mean(0)).sum()


def train_texts(
    model: TextSide,
    layout: Layout,
    image_tokens: NDArray[np.float16],
    truths: Sequence[Truth],
    options: TextOptions,
    seed: int,
    saving: Saving,
) -> None:
    """Train the decoder on `image_tokens` [frames, tokens of a frame, hidden_size], whose frames show `truths`."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=0.02, betas=(0.9, 0.98))
    balance, pool = LoadBalance(model.decoder), StudyPool(truths)
    noise = options.noise * float(image_tokens[:1000].astype(np.float32).std())
    beginnings = {frames: layout.beginning(frames) for frames in range(1, MOST_FRAMES + 1)}
    run = Run("texts", options.steps, optimizer, model, saving)

    for step in run.steps():
        frames = 1 + step % MOST_FRAMES
        random = np.random.default_rng([seed, 1, step, saving.shard.index])
        drawn = [pool.draw(frames, random) for _ in range(options.studies // saving.shard.count)]
        images = image_tokens[[chosen for _, chosen in drawn]].astype(np.float32)
        images += noise * random.standard_normal(images.shape, dtype=np.float32)
        conversations = [
            (study, conversation)
            for study, (truth, _) in enumerate(drawn)
            for conversation in draw_conversations(truth, frames, options.exchanges, random)
        ]
        # By length, so that short questions are not padded to the longest report; Chinese has three bytes a character.
        conversations.sort(key=lambda one: sum(len((turn.prompt + turn.answer).encode()) for turn in one[1]))
        parts = [conversations[start : start + PART] for start in range(0, len(conversations), PART)]
        beginning = beginnings[frames]
        branches = [layout.branches(beginning, *zip(*part, strict=True)) for part in parts]
        words = model.loss(beginning, torch.from_numpy(images).flatten(1, 2), branches)
        run.learn(words + options.balance * balance.loss([None, *(part.is_text for part in branches)]))
