"""The vision encoder: Qwen2-VL's vision transformer over the patches of one image."""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from echovlm_edge.export.families.shape import VisionConfig
from echovlm_edge.export.model.operators import LayerNorm, Linear, quick_gelu, self_attention, traced_mlp


class VisionAttention(nn.Module):
    """Self-attention within one image or within its windows, with 2-D rotary positions."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads, self.whole = config.num_heads, config.window_patches
        self.qkv = Linear(config.embed_dim, 3 * config.embed_dim)
        self.proj = Linear(config.embed_dim, config.embed_dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, offsets: Tensor | None) -> Tensor:
        """X [1, p, width] to the same shape; `offsets` as in `self_attention`."""
        return self.proj(self_attention(self.qkv(x), cos, sin, self.heads, offsets, self.whole))


class FeedForward(Protocol):
    """A block's MLP, in the steps that a calibration takes.

    Attributes:
        entering: the names of the layers that take the MLP's input.
        leaving: the name of the layer that gives its output.
    """

    entering: ClassVar[tuple[str, ...]]
    leaving: ClassVar[str]

    def inner(self, x: Tensor) -> Tensor:
        """Compute the input of the layer `leaving`: x [..., width] to [..., mlp_dim]."""
        ...


class VisionMLP(nn.Module):
    """Two layers with quick GELU, a `FeedForward`."""

    entering: ClassVar = ("fc1",)
    leaving: ClassVar = "fc2"

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.embed_dim, config.mlp_dim)
        self.fc2 = Linear(config.mlp_dim, config.embed_dim)

    def inner(self, x: Tensor) -> Tensor:
        """X [1, p, width] to [1, p, mlp_dim]."""
        return quick_gelu(self.fc1(x))

    def forward(self, x: Tensor) -> Tensor:
        """X [1, p, width] to the same shape."""
        if torch.compiler.is_exporting():
            return traced_mlp(x, self.fc1, self.fc2)
        return self.fc2(self.inner(x))


class VisionBlock(nn.Module):
    """One pre-norm transformer block, with two norms and an MLP of some kind."""

    def __init__(self, config: VisionConfig, norm1: nn.Module, norm2: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm1, norm2
        self.attn, self.mlp = VisionAttention(config), mlp

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, offsets: Tensor | None = None) -> Tensor:
        """X [1, p, width] to the same shape; `offsets` as in `self_attention`."""
        x = x + self.attn(self.norm1(x), cos, sin, offsets)
        return x + self.mlp(self.norm2(x))


class VisionEncoder(nn.Module):
    """Patches of one image to features. An image attends only to itself, so images go through one at a time."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embed = Linear(config.patch_values, config.embed_dim, bias=False)
        width = config.embed_dim
        self.blocks = nn.ModuleList(
            VisionBlock(config, LayerNorm(width), LayerNorm(width), VisionMLP(config)) for _ in range(config.depth)
        )

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
