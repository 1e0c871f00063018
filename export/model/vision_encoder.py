"""The vision encoder: Qwen2-VL's vision transformer over the patches of one image."""

from __future__ import annotations

from torch import Tensor, nn

from echovlm_edge.export.config import VisionConfig
from echovlm_edge.export.model.operators import LayerNorm, Linear, quick_gelu, self_attention


class VisionAttention(nn.Module):
    """Full self-attention within one image, with 2-D rotary positions."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.qkv = Linear(config.embed_dim, 3 * config.embed_dim)
        self.proj = Linear(config.embed_dim, config.embed_dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """X [1, p, width] to the same shape."""
        return self.proj(self_attention(self.qkv(x), cos, sin, self.heads))


class VisionMLP(nn.Module):
    """Two layers with quick GELU."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.embed_dim, config.mlp_dim)
        self.fc2 = Linear(config.mlp_dim, config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """X [1, p, width] to the same shape."""
        return self.fc2(quick_gelu(self.fc1(x)))


class VisionBlock(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(config.embed_dim), LayerNorm(config.embed_dim)
        self.attn, self.mlp = VisionAttention(config), VisionMLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """X [1, p, width] to the same shape."""
        x = x + self.attn(self.norm1(x), cos, sin)
        return x + self.mlp(self.norm2(x))


class VisionEncoder(nn.Module):
    """Patches of one image to features. An image attends only to itself, so images go through one at a time."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embed = Linear(config.patch_values, config.embed_dim, bias=False)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))

    def forward(self, patches: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Encode one image.

        Args:
            patches: [p, patch_values], in merge order.
            cos: [p, head_dim / 2], each patch's row and column angles; sin: likewise.

        Returns:
            Features [p, embed_dim].
        """
        x = self.patch_embed(patches).unsqueeze(0)
        cos, sin = cos.unsqueeze(0), sin.unsqueeze(0)
        for block in self.blocks:
            x = block(x, cos, sin)
        return x.squeeze(0)
