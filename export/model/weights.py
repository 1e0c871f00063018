"""Which checkpoint tensors each parameter of the parts is made of: by name, so that weights are read one at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from echovlm_edge.export.families.shape import DecoderConfig
from echovlm_edge.export.model.decoder import Decoder
from echovlm_edge.export.model.projector import Projector
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.export.source.config import EchoVLMConfig

# Logits of the MoE path's and the dense path's coefficients: in float32 their softmax is 2e-9, which is not 0 (a GPU's kernels for few
# tokens leave the inner values of a path of 0 unwritten, and read them), and exactly 1.
NO_MIXTURE = (-20.0, 0.0)


@dataclass(frozen=True)
class Weight:
    """A parameter: one checkpoint tensor, or several laid side by side along `axis`.

    Attributes:
        tensors: their names.
        axis: along which they are joined.
        padded: the shape to which one tensor's values are padded with zeros, or which none, a constant, has.
        constant: the values of a vector that is in no checkpoint; zeros where there are none.
    """

    tensors: tuple[str, ...]
    axis: int = 0
    padded: tuple[int, ...] = ()
    constant: tuple[float, ...] = ()

    def read(self, checkpoint: Checkpoint, rows: slice | None = None) -> Tensor:
        """Read the parameter's values, or some of its rows: float32, at most two-dimensional (a convolution's kernel is flattened)."""
        if self.padded:
            return self._read_padded(checkpoint, rows or slice(0, self.padded[0]))
        parts = [checkpoint.read(name, some).float() for name, some in self.rows_of_tensors(checkpoint, rows)]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, self.axis)
        return whole.flatten(1) if whole.dim() > 2 else whole

    def _read_padded(self, checkpoint: Checkpoint, rows: slice) -> Tensor:
        values = torch.zeros(rows.stop - rows.start, *self.padded[1:])
        for tensor in (Weight((name,)) for name in self.tensors):
            stop = min(rows.stop, tensor.shape(checkpoint)[0])
            if rows.start < stop:
                some = tensor.read(checkpoint, slice(rows.start, stop))
                values[tuple(map(slice, some.shape))] = some
        if self.constant:
            values.copy_(torch.tensor(self.constant[rows]))
        return values

    def rows_of_tensors(self, checkpoint: Checkpoint, rows: slice | None) -> Iterator[tuple[str, slice | None]]:
        """Yield which tensors some rows, or all of them, come from, and which of their rows."""
        first = 0
        for name in self.tensors:
            if rows is None or self.axis == 1 or self.padded:
                yield name, rows
                continue
            count = checkpoint.tensors[name].shape[0]
            start, stop = max(rows.start - first, 0), min(rows.stop - first, count)
            if start < stop:
                yield name, slice(start, stop)
            first += count

    def shape(self, checkpoint: Checkpoint) -> tuple[int, ...]:
        """Return the shape that `read` gives."""
        if self.padded:
            return self.padded
        shapes = [checkpoint.tensors[name].shape for name in self.tensors]
        whole = list(shapes[0])
        whole[self.axis] = sum(shape[self.axis] for shape in shapes)
        return (whole[0], math.prod(whole[1:])) if len(whole) > 2 else tuple(whole)

    def part(self, index: int) -> Weight:
        """Return one of the tensors that it is made of."""
        return Weight((self.tensors[index],), padded=self.padded)


def vision_encoder_weights(config: EchoVLMConfig) -> dict[str, Weight]:
    """Return the vision encoder's parameters."""
    weights = {"patch_embed.weight": Weight(("visual.patch_embed.proj.weight",))}
    family, vision = config.family, config.vision
    ours = family.block_tensors(vision.padded())
    for block in range(vision.depth):
        for name, shape in family.block_tensors(vision).items():
            padded = ours[name] if ours[name] != shape else ()
            weights[f"blocks.{block}.{name}"] = Weight((f"visual.blocks.{block}.{name}",), padded=padded)
    return weights


def projector_weights(config: EchoVLMConfig) -> dict[str, Weight]:
    """Return the projector's parameters."""
    weights = {name: Weight((f"visual.merger.{name}",)) for name in config.family.merger_norm(config.vision)}
    for ours, theirs in (("fc1", "mlp.0"), ("fc2", "mlp.2")):
        for kind in ("weight", "bias"):
            weights[f"{ours}.{kind}"] = Weight((f"visual.merger.{theirs}.{kind}",))
    return weights


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
        feed_forward = _dense(decoder, theirs) if decoder.dense_only else _mixture(decoder, theirs)
        weights |= {f"{ours}.dual_path_moe.{name}": weight for name, weight in feed_forward.items()}
    weights["norm.weight"] = Weight(("model.norm.weight",))
    head = "model.embed_tokens.weight" if decoder.tie_word_embeddings else "lm_head.weight"
    weights["lm_head.weight"] = Weight((head,))
    return weights


def _mixture(decoder: DecoderConfig, layer: str) -> dict[str, Weight]:
    """Return the parameters of a layer's DualPathMoE."""
    weights = {
        "router": Weight((f"{layer}.moe.gate.weight",)),
        "shared_gate": Weight((f"{layer}.moe.shared_expert_gate.weight",)),
        "coefficient": Weight((f"{layer}.coefficient.weight",)),
        "coefficient_bias": Weight((f"{layer}.coefficient.bias",)),
    }
    experts = (f"moe.experts.{expert}" for expert in range(decoder.num_experts))
    groups = [f"{layer}.{group}" for group in ("mlp", "moe.shared_expert", *experts)]
    for name, axis in (("gate", 0), ("up", 0), ("down", 1)):
        weights[name] = Weight(tuple(f"{group}.{name}_proj.weight" for group in groups), axis)
    return weights


def _dense(decoder: DecoderConfig, layer: str) -> dict[str, Weight]:
    """Return them for a layer without experts: the dense path has the coefficient 1, and the MoE path is of zeros."""
    width, total = decoder.hidden_size, sum(decoder.group_widths)
    return {
        "router": Weight((), padded=(decoder.num_experts, width)),
        "shared_gate": Weight((), padded=(1, width)),
        "coefficient": Weight((), padded=(2, width)),
        "coefficient_bias": Weight((), padded=(2,), constant=NO_MIXTURE),
        "gate": Weight((f"{layer}.mlp.gate_proj.weight",), padded=(total, width)),
        "up": Weight((f"{layer}.mlp.up_proj.weight",), padded=(total, width)),
        "down": Weight((f"{layer}.mlp.down_proj.weight",), padded=(width, total)),
    }


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

    vision_encoder: nn.Module
    projector: Projector
    decoder: Decoder

    def by_name(self) -> dict[str, nn.Module]:
        """Return each by the name that it has in a bundle."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def parts_without_values(config: EchoVLMConfig) -> Parts:
    """Make the parts with shapes and no values: enough to trace, and to be loaded into."""
    with torch.device("meta"):
        return Parts(config.family.vision_encoder(config.vision), Projector(config.vision), Decoder(config.decoder))
