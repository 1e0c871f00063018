"""Which checkpoint tensors each parameter of the parts is made of: by name, so that weights are read one at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from echovlm_edge.export.checkpoint import Checkpoint
from echovlm_edge.export.config import EchoVLMConfig
from echovlm_edge.export.model.decoder import Decoder
from echovlm_edge.export.model.projector import Projector
from echovlm_edge.export.model.vision_encoder import VisionEncoder


@dataclass(frozen=True)
class Weight:
    """A parameter: one checkpoint tensor, or several laid side by side along `axis`."""

    tensors: tuple[str, ...]
    axis: int = 0

    def read(self, checkpoint: Checkpoint, rows: slice | None = None) -> Tensor:
        """Read the parameter's values, or some of its rows: float32, at most two-dimensional (a convolution's kernel is flattened)."""
        parts = [checkpoint.read(name, some).float() for name, some in self.rows_of_tensors(checkpoint, rows)]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, self.axis)
        return whole.flatten(1) if whole.dim() > 2 else whole

    def rows_of_tensors(self, checkpoint: Checkpoint, rows: slice | None) -> Iterator[tuple[str, slice | None]]:
        """Yield which tensors some rows, or all of them, come from, and which of their rows."""
        first = 0
        for name in self.tensors:
            if rows is None or self.axis == 1:
                yield name, rows
                continue
            count = checkpoint.tensors[name].shape[0]
            start, stop = max(rows.start - first, 0), min(rows.stop - first, count)
            if start < stop:
                yield name, slice(start, stop)
            first += count

    def shape(self, checkpoint: Checkpoint) -> tuple[int, ...]:
        """Return the shape that `read` gives."""
        shapes = [checkpoint.tensors[name].shape for name in self.tensors]
        whole = list(shapes[0])
        whole[self.axis] = sum(shape[self.axis] for shape in shapes)
        return (whole[0], math.prod(whole[1:])) if len(whole) > 2 else tuple(whole)

    def part(self, index: int) -> Weight:
        """Return one of the tensors that it is made of."""
        return Weight((self.tensors[index],))


def vision_encoder_weights(config: EchoVLMConfig) -> dict[str, Weight]:
    """Return the vision encoder's parameters."""
    weights = {"patch_embed.weight": Weight(("visual.patch_embed.proj.weight",))}
    for block in range(config.vision.depth):
        for name in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            for kind in ("weight", "bias"):
                weights[f"blocks.{block}.{name}.{kind}"] = Weight((f"visual.blocks.{block}.{name}.{kind}",))
    return weights


def projector_weights(_: EchoVLMConfig) -> dict[str, Weight]:
    """Return the projector's parameters."""
    published = {"ln_q": "ln_q", "fc1": "mlp.0", "fc2": "mlp.2"}
    return {
        f"{ours}.{kind}": Weight((f"visual.merger.{theirs}.{kind}",))
        for ours, theirs in published.items()
        for kind in ("weight", "bias")
    }


def decoder_weights(config: EchoVLMConfig) -> dict[str, Weight]:
    """Return the decoder's parameters; DualPathMoE's are stacked by group: dense, shared, experts."""
    decoder = config.decoder
    weights: dict[str, Weight] = {}
    for index in range(decoder.num_hidden_layers):
        ours, theirs = f"layers.{index}", f"model.layers.{index}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{ours}.{norm}.weight"] = Weight((f"{theirs}.{norm}.weight",))
        for kind in ("weight", "bias"):
            projections = tuple(f"{theirs}.self_attn.{name}_proj.{kind}" for name in "qkv")
            weights[f"{ours}.self_attn.qkv_proj.{kind}"] = Weight(projections)
        weights[f"{ours}.self_attn.o_proj.weight"] = Weight((f"{theirs}.self_attn.o_proj.weight",))
        block = f"{ours}.dual_path_moe"
        weights[f"{block}.router"] = Weight((f"{theirs}.moe.gate.weight",))
        weights[f"{block}.shared_gate"] = Weight((f"{theirs}.moe.shared_expert_gate.weight",))
        weights[f"{block}.coefficient"] = Weight((f"{theirs}.coefficient.weight",))
        weights[f"{block}.coefficient_bias"] = Weight((f"{theirs}.coefficient.bias",))
        experts = (f"moe.experts.{expert}" for expert in range(decoder.num_experts))
        groups = [f"{theirs}.{group}" for group in ("mlp", "moe.shared_expert", *experts)]
        for name, axis in (("gate", 0), ("up", 0), ("down", 1)):
            weights[f"{block}.{name}"] = Weight(tuple(f"{group}.{name}_proj.weight" for group in groups), axis)
    weights["norm.weight"] = Weight(("model.norm.weight",))
    head = "model.embed_tokens.weight" if decoder.tie_word_embeddings else "lm_head.weight"
    weights["lm_head.weight"] = Weight((head,))
    return weights


def part_weights(config: EchoVLMConfig) -> dict[str, dict[str, Weight]]:
    """Return the parameters of each part, by the part's name."""
    return {
        "vision_encoder": vision_encoder_weights(config),
        "projector": projector_weights(config),
        "decoder": decoder_weights(config),
    }


TOKEN_EMBEDDING = Weight(("model.embed_tokens.weight",))


def below(weights: dict[str, Weight], path: str) -> dict[str, Weight]:
    """Return the parameters of the module at `path`, by their names there."""
    return {name.removeprefix(f"{path}."): weight for name, weight in weights.items() if name.startswith(f"{path}.")}


def load(part: nn.Module, weights: dict[str, Weight], checkpoint: Checkpoint) -> None:
    """Fill a part that was made on the meta device with the checkpoint's values, in float32."""
    state = {name: weight.read(checkpoint) for name, weight in weights.items()}
    part.load_state_dict(state, strict=True, assign=True)
    part.requires_grad_(False).eval()


@dataclass(frozen=True)
class Parts:
    """The three traced parts of a model."""

    vision_encoder: VisionEncoder
    projector: Projector
    decoder: Decoder

    def by_name(self) -> dict[str, nn.Module]:
        """Return each by the name that it has in a bundle."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def parts_without_values(config: EchoVLMConfig) -> Parts:
    """Make the parts with shapes and no values: enough to trace, and to be loaded into."""
    with torch.device("meta"):
        return Parts(VisionEncoder(config.vision), Projector(config.vision), Decoder(config.decoder))
