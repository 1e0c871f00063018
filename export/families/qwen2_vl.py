"""Qwen2-VL: a vision transformer with layer normalisation and quick GELU, and a decoder whose layers have one SwiGLU network."""

from __future__ import annotations

from echovlm_edge.export.families.interface import (
    Family,
    Published,
    Shapes,
    decoder_config,
    known_vision_keys,
    layer_norm,
    linear,
    swiglu,
    vision_attention,
)
from echovlm_edge.export.families.shape import EMPTY_GROUP, DecoderConfig, VisionConfig
from echovlm_edge.export.model.vision_encoder import VisionEncoder
from echovlm_edge.runtime.bundle.architectures import QWEN2_VL


def read_vision(published: Published) -> VisionConfig:
    """Read `vision_config`; an absent key has Qwen2-VL's value."""
    return VisionConfig(**known_vision_keys(published, {}))


def read_dense_decoder(published: Published) -> DecoderConfig:
    """Read a decoder without experts."""
    return decoder_config(
        published,
        moe_intermediate_size=EMPTY_GROUP,
        shared_expert_intermediate_size=EMPTY_GROUP,
        num_experts=1,
        num_experts_per_tok=1,
        dense_only=True,
    )


def block_tensors(vision: VisionConfig) -> Shapes:
    """List a vision block's tensors."""
    width, inner = vision.embed_dim, vision.mlp_dim
    norms = layer_norm("norm1", width) | layer_norm("norm2", width)
    return norms | vision_attention(width) | linear("mlp.fc1", inner, width) | linear("mlp.fc2", width, inner)


def merger_norm(vision: VisionConfig) -> Shapes:
    """List the tensors of the projector's norm."""
    return layer_norm("ln_q", vision.embed_dim)


def dense_tensors(decoder: DecoderConfig) -> Shapes:
    """List the tensors of a layer's one SwiGLU network."""
    return swiglu("mlp", decoder.hidden_size, decoder.intermediate_size)


FAMILY = Family(
    architecture=QWEN2_VL,
    read_vision=read_vision,
    read_decoder=read_dense_decoder,
    hidden_act="quick_gelu",
    block_tensors=block_tensors,
    merger_norm=merger_norm,
    feed_forward_tensors=dense_tensors,
    vision_encoder=VisionEncoder,
)
