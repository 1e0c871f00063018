"""The widths and depths of a model of any family, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, replace

from echovlm_edge.export.weights.quantize import BLOCK_SIZES

EMPTY_GROUP = max(BLOCK_SIZES)  # the inner width of a DualPathMoE's group that is there in name only


@dataclass(frozen=True)
class VisionConfig:
    """The vision encoder and projector; the defaults are Qwen2-VL's, which the published file leaves out.

    Attributes:
        depth: blocks.
        embed_dim: the vision encoder's width.
        hidden_size: the projector's output: the decoder's width.
        hidden_act: of the blocks' MLPs.
        mlp_ratio: inner width of an MLP of two layers, relative to embed_dim.
        num_heads: of the blocks' attention.
        in_channels, patch_size, temporal_patch_size: a patch.
        spatial_merge_size: neighbours along each axis that become one visual token.
        swiglu_dim: inner width of MLPs that are SwiGLU networks, as published; 0 where they are not.
        window: visual tokens along the side of the squares within which most blocks attend; 0 where all attend to the whole image.
        full_blocks: the blocks that do attend to the whole image.
    """

    depth: int = 32
    embed_dim: int = 1280
    hidden_size: int = 3584
    hidden_act: str = "quick_gelu"
    mlp_ratio: float = 4
    num_heads: int = 16
    in_channels: int = 3
    patch_size: int = 14
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    swiglu_dim: int = 0
    window: int = 0
    full_blocks: tuple[int, ...] = ()

    @property
    def patch_values(self) -> int:
        """Return the numbers in one flattened patch: channels x time x height x width."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def head_dim(self) -> int:
        """Return the width of one attention head."""
        return self.embed_dim // self.num_heads

    @property
    def mlp_dim(self) -> int:
        """Return the inner width of a block's MLP; a SwiGLU's is padded, with zeros, to whole blocks of quantized weights."""
        if self.swiglu_dim:
            return -(-self.swiglu_dim // max(BLOCK_SIZES)) * max(BLOCK_SIZES)
        return int(self.embed_dim * self.mlp_ratio)

    def padded(self) -> VisionConfig:
        """Return it as if the padded widths were the published ones."""
        return replace(self, swiglu_dim=self.mlp_dim) if self.swiglu_dim else self

    @property
    def window_patches(self) -> int:
        """Return the patches of a whole window; 0 where there are no windows."""
        return (self.window * self.spatial_merge_size) ** 2

    @property
    def merged_dim(self) -> int:
        """Return the width of one merged patch: the projector's inner width."""
        return self.embed_dim * self.spatial_merge_size**2


@dataclass(frozen=True)
class DecoderConfig:
    """The decoder and its DualPathMoE blocks.

    A decoder with `dense_only` has no experts. It runs by the same operator and kernels: its dense path has the coefficient 1,
    and its MoE path is a shared expert and one expert of `EMPTY_GROUP` zeros.
    """

    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    shared_expert_intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    num_experts: int
    num_experts_per_tok: int
    vocab_size: int
    mrope_section: tuple[int, int, int]
    head_dim: int
    norm_topk_prob: bool = False
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 32768
    dense_only: bool = False

    @property
    def group_widths(self) -> tuple[int, ...]:
        """Return the inner widths of DualPathMoE's groups, in its order: dense, shared, experts."""
        experts = (self.moe_intermediate_size,) * self.num_experts
        return (self.intermediate_size, self.shared_expert_intermediate_size, *experts)
