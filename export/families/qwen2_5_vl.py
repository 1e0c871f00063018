"""Qwen2.5-VL: Qwen2-VL with another vision encoder, which has RMS norms, SwiGLU networks, and attention within windows of the image."""

from __future__ import annotations

from dataclasses import replace

from echovlm_edge.export.families import qwen2_vl
from echovlm_edge.export.families.interface import (
    Published,
    Shapes,
    known_vision_keys,
    rms_norm,
    swiglu,
    vision_attention,
)
from echovlm_edge.export.families.shape import VisionConfig
from echovlm_edge.export.model.windowed_vision_encoder import WindowedVisionEncoder
from echovlm_edge.runtime.bundle.architectures import QWEN2_5_VL

_OTHER_NAMES = {"hidden_size": "embed_dim", "out_hidden_size": "hidden_size", "intermediate_size": "swiglu_dim"}
_PUBLISHED = {
    "intermediate_size": 3420,
    "hidden_act": "silu",
    "window_size": 112,
    "fullatt_block_indexes": (7, 15, 23, 31),
}


def read_vision(published: Published) -> VisionConfig:
    """Read `vision_config`; an absent key has the published model's value.

    Raises:
        ValueError: its windows cannot be.
    """
    keys = {**_PUBLISHED, **published}
    vision = VisionConfig(**known_vision_keys(keys, _OTHER_NAMES))
    unit = vision.patch_size * vision.spatial_merge_size
    pixels, full = keys["window_size"], tuple(keys["fullatt_block_indexes"])
    if type(pixels) is not int or pixels < unit or pixels % unit:
        raise ValueError(f"vision_config.window_size {pixels!r} is no multiple of {unit} pixels, a visual token's side")
    if any(type(block) is not int or not 0 <= block < vision.depth for block in full) or len(set(full)) < len(full):
        raise ValueError(f"fullatt_block_indexes {list(full)} are not different blocks of 0 to {vision.depth - 1}")
    return replace(vision, window=pixels // unit, full_blocks=full)


def block_tensors(vision: VisionConfig) -> Shapes:
    """List a vision block's tensors."""
    width = vision.embed_dim
    norms = rms_norm("norm1", width) | rms_norm("norm2", width)
    return norms | vision_attention(width) | swiglu("mlp", width, vision.swiglu_dim, bias=True)


def merger_norm(vision: VisionConfig) -> Shapes:
    """List the tensor of the projector's norm."""
    return rms_norm("ln_q", vision.embed_dim)


FAMILY = replace(
    qwen2_vl.FAMILY,
    architecture=QWEN2_5_VL,
    read_vision=read_vision,
    hidden_act="silu",
    block_tensors=block_tensors,
    merger_norm=merger_norm,
    vision_encoder=WindowedVisionEncoder,
)
