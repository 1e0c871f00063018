"""The projector: the Qwen-VL models' patch merger, from the vision encoder's width to the decoder's."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from echovlm_edge.export.families.shape import VisionConfig
from echovlm_edge.export.model.operators import LayerNorm, Linear, RMSNorm


class Projector(nn.Module):
    """A norm, of the vision encoder's kind, then each 2 x 2 neighbours' features side by side through Linear, GELU, Linear."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.merged_dim = config.merged_dim
        self.ln_q = RMSNorm(config.embed_dim) if config.window else LayerNorm(config.embed_dim)
        self.fc1 = Linear(config.merged_dim, config.merged_dim)
        self.fc2 = Linear(config.merged_dim, config.hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        """Features [p, embed_dim] in merge order to image embeddings [p / 4, hidden_size]."""
        merged = self.ln_q(features).reshape(-1, self.merged_dim)
        return self.fc2(functional.gelu(self.fc1(merged)))
