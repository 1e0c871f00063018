"""Qwen2.5-VL's vision encoder, as the difference from Qwen2-VL's: RMS norms, SwiGLU networks, and attention within windows."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from echovlm_edge.export.families.shape import VisionConfig
from echovlm_edge.export.model.operators import Linear, RMSNorm, traced_mlp
from echovlm_edge.export.model.vision_encoder import VisionBlock


class VisionSwiGLU(nn.Module):
    """A SwiGLU network with biases, a `FeedForward`. The values in its padding are silu(0) * 0 = 0."""

    entering: ClassVar = ("gate_proj", "up_proj")
    leaving: ClassVar = "down_proj"

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.embed_dim, config.mlp_dim)
        self.up_proj = Linear(config.embed_dim, config.mlp_dim)
        self.down_proj = Linear(config.mlp_dim, config.embed_dim)

    def inner(self, x: Tensor) -> Tensor:
        """X [1, p, width] to [1, p, mlp_dim]."""
        return functional.silu(self.gate_proj(x)) * self.up_proj(x)

    def forward(self, x: Tensor) -> Tensor:
        """X [1, p, width] to the same shape."""
        if torch.compiler.is_exporting():
            return traced_mlp(x, self.up_proj, self.down_proj, self.gate_proj)
        return self.down_proj(self.inner(x))


class WindowedVisionEncoder(nn.Module):
    """Patches of one image to features; between the two they are ordered by window."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, self.full_blocks = config.embed_dim, config.full_blocks
        self.patch_embed = Linear(config.patch_values, width, bias=False)
        self.blocks = nn.ModuleList(
            VisionBlock(config, RMSNorm(width), RMSNorm(width), VisionSwiGLU(config)) for _ in range(config.depth)
        )

    def forward(
        self,
        patches: Tensor,
        cos: Tensor,
        sin: Tensor,
        window_order: Tensor,
        merge_order: Tensor,
        window_offsets: Tensor,
    ) -> Tensor:
        """Encode one image.

        Args:
            patches: [p, patch_values], in merge order.
            cos: [p, head_dim / 2], each patch's row and column angles; sin: likewise.
            window_order: int64 [p], the patches window by window, by their numbers in merge order.
            merge_order: int64 [p], its inverse.
            window_offsets: int64 [w + 1], the place at which each window begins, then p.

        Returns:
            Features [p, embed_dim], in merge order.
        """
        x, cos, sin = (t.index_select(0, window_order).unsqueeze(0) for t in (patches, cos, sin))
        x = self.patch_embed(x)
        for number, block in enumerate(self.blocks):
            x = block(x, cos, sin, None if number in self.full_blocks else window_offsets)
        return x.squeeze(0).index_select(0, merge_order)
