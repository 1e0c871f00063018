"""The interface of a model family, and the words in which a family lists its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from torch import nn

from echovlm_edge.export.families.shape import DecoderConfig, VisionConfig

Published = Mapping[str, Any]  # a parsed config.json, or one of its objects
Shapes = dict[str, tuple[int, ...]]  # tensor name to shape

# The published files say in_chans and spatial_patch_size where the config classes say in_channels and patch_size.
_OLD_VISION_KEYS = {"in_chans": "in_channels", "spatial_patch_size": "patch_size"}


@dataclass(frozen=True)
class Family:
    """What differs between one published architecture and the others; the rest is common to all.

    Attributes:
        architecture: its name in config.json.
        read_vision: makes the vision encoder's config of `vision_config`.
        read_decoder: makes the decoder's config of the text model's keys.
        hidden_act: the activation of the vision encoder's MLPs.
        block_tensors: the tensors of a vision block, by their names in it.
        merger_norm: the tensors of the projector's norm, likewise.
        feed_forward_tensors: the tensors of a decoder layer but for attention and norms, by their names in the layer.
        vision_encoder: makes the PyTorch module.
    """

    architecture: str
    read_vision: Callable[[Published], VisionConfig]
    read_decoder: Callable[[Published], DecoderConfig]
    hidden_act: str
    block_tensors: Callable[[VisionConfig], Shapes]
    merger_norm: Callable[[VisionConfig], Shapes]
    feed_forward_tensors: Callable[[DecoderConfig], Shapes]
    vision_encoder: Callable[[VisionConfig], nn.Module]


def linear(name: str, rows: int, columns: int, bias: bool = True) -> Shapes:
    """List a linear layer's tensors."""
    return {f"{name}.weight": (rows, columns)} | ({f"{name}.bias": (rows,)} if bias else {})


def layer_norm(name: str, width: int) -> Shapes:
    """List a layer normalisation's tensors."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def rms_norm(name: str, width: int) -> Shapes:
    """List the tensor of a normalisation by the root mean square."""
    return {f"{name}.weight": (width,)}


def swiglu(name: str, width: int, inner: int, bias: bool = False) -> Shapes:
    """List a SwiGLU network's tensors."""
    gate, up = (linear(f"{name}.{part}_proj", inner, width, bias) for part in ("gate", "up"))
    return gate | up | linear(f"{name}.down_proj", width, inner, bias)


def vision_attention(width: int) -> Shapes:
    """List the tensors of a vision block's attention."""
    return linear("attn.qkv", 3 * width, width) | linear("attn.proj", width, width)


def known_vision_keys(published: Published, renamed: Mapping[str, str]) -> dict[str, Any]:
    """Pick the keys of a vision_config that `VisionConfig` has, under their names there."""
    names = {**_OLD_VISION_KEYS, **renamed}
    found = {names.get(key, key): value for key, value in published.items()}
    return {key: value for key, value in found.items() if key in VisionConfig.__dataclass_fields__}


def decoder_config(published: Published, **further: Any) -> DecoderConfig:
    """Read the keys that all families' decoders have; `further` are the family's own.

    Raises:
        KeyError: a key without a default is missing.
        ValueError: the rotary embedding is of another kind than M-RoPE.
    """
    known = {key: value for key, value in published.items() if key in DecoderConfig.__dataclass_fields__} | further
    rope = published.get("rope_parameters") or published.get("rope_scaling") or {}
    for kind in (rope.get(key, "default") for key in ("rope_type", "type")):
        if kind not in ("default", "mrope"):
            raise ValueError(f"the rope type is {kind!r}, and these models have 'mrope'")
    if "rope_theta" in rope:
        known["rope_theta"] = float(rope["rope_theta"])
    known["mrope_section"] = tuple(int(width) for width in rope["mrope_section"])
    known.setdefault("head_dim", int(published["hidden_size"]) // int(published["num_attention_heads"]))
    for field in fields(DecoderConfig):
        if field.default is MISSING and field.name not in known:
            raise KeyError(field.name)
    return DecoderConfig(**known)
