"""What a model's stages cost by its config: operations of products (a multiply-add is two), bytes that one token reads."""

from __future__ import annotations

from collections.abc import Mapping

from echovlm_edge.export.config import EchoVLMConfig
from echovlm_edge.export.plan import kv_cache_bytes


def vision_encoder_operations(config: EchoVLMConfig, patches: int) -> float:
    """One image's patches through every block: its four products, and attention of all patches to all."""
    vision = config.vision
    block = 2 * patches * vision.embed_dim * (4 * vision.embed_dim + 2 * vision.mlp_dim)
    attention = 4 * patches**2 * vision.embed_dim
    return vision.depth * (block + attention) + 2 * patches * vision.patch_values * vision.embed_dim


def projector_operations(config: EchoVLMConfig, patches: int) -> float:
    """One image's patches, merged four by four."""
    vision = config.vision
    merged = patches / vision.spatial_merge_size**2
    return 2 * merged * vision.merged_dim * (vision.merged_dim + vision.hidden_size)


def prefill_operations(config: EchoVLMConfig, tokens: int) -> float:
    """A prompt through the decoder: attention to what came before, the chosen experts, and the head for its last token."""
    decoder = config.decoder
    width, heads = decoder.hidden_size, decoder.num_attention_heads * decoder.head_dim
    projections = width * (2 * heads + 2 * decoder.num_key_value_heads * decoder.head_dim)
    dense, shared, *experts = decoder.group_widths
    active = 3 * width * (dense + shared + decoder.num_experts_per_tok * experts[0])
    layer = 2 * tokens * (projections + active) + 2 * tokens**2 * heads
    return decoder.num_hidden_layers * layer + 2 * width * decoder.vocab_size


def bytes_of_a_token(config: EchoVLMConfig, sizes: Mapping[str, int], bits: int, block_size: int, filled: int) -> float:
    """What decoding one token must read: the decoder's weights but for the experts not chosen, and the filled KV cache.

    Args:
        config: the model's.
        sizes: bytes of the bundle's files of weights.
        bits: of a quantized decoder weight.
        block_size: values that share a float32 scale.
        filled: tokens in a float32 KV cache.
    """
    decoder = config.decoder
    idle = decoder.num_experts - decoder.num_experts_per_tok
    values = decoder.num_hidden_layers * idle * 3 * decoder.hidden_size * decoder.moe_intermediate_size
    return sizes["decoder.data"] - values * (bits / 8 + 4 / block_size) + kv_cache_bytes(config, filled, 4)
