"""DualPathMoE: dense path and mixture-of-experts path side by side, the product's hot loop.

Specified in plugins/dual_path_moe/README.md. Parameters are stacked by group (dense, shared, experts), as the operator
takes them, so that one grouped product covers all groups.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from echovlm_edge.export.families.shape import DecoderConfig
from echovlm_edge.export.model.operators import symbol


class DualPathMoE(nn.Module):
    """y = c0 (sum over top-k of p_e E_e(x) + sigmoid(w_s x) S(x)) + c1 D(x), with c = softmax(W_c x + b_c)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        width, total = config.hidden_size, sum(config.group_widths)
        self.group_widths = config.group_widths
        self.top_k = config.num_experts_per_tok
        self.norm_topk_prob = config.norm_topk_prob
        self.dense_only = config.dense_only
        self.router = nn.Parameter(torch.empty(config.num_experts, width))
        self.shared_gate = nn.Parameter(torch.empty(1, width))
        self.coefficient = nn.Parameter(torch.empty(2, width))
        self.coefficient_bias = nn.Parameter(torch.empty(2))
        self.gate = nn.Parameter(torch.empty(total, width))
        self.up = nn.Parameter(torch.empty(total, width))
        self.down = nn.Parameter(torch.empty(width, total))

    def forward(self, x: Tensor) -> Tensor:
        """X [b, s, hidden_size] to the same shape."""
        if torch.compiler.is_exporting():
            inputs = (
                *(x, self.router, self.shared_gate, self.coefficient, self.coefficient_bias),
                *(self.gate, self.up, self.down),
            )
            return symbol(
                "DualPathMoE",
                inputs,
                x,
                tuple(x.shape),
                group_widths=list(self.group_widths),
                top_k=self.top_k,
                norm_topk_prob=int(self.norm_topk_prob),
                dense_only=int(self.dense_only),
            )
        tokens = x.flatten(0, -2)
        return self._mix(tokens).view(x.shape)

    def route(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weigh the paths for tokens [n, hidden_size].

        Returns:
            Coefficients [n, 2] (MoE path, dense path), top-k probabilities [n, k] and experts int64 [n, k].
        """
        coefficients = functional.linear(tokens, self.coefficient, self.coefficient_bias).softmax(-1)
        probabilities = functional.linear(tokens, self.router).softmax(-1, dtype=torch.float32)
        kept, experts = probabilities.topk(self.top_k, dim=-1)
        if self.norm_topk_prob:
            kept = kept / kept.sum(-1, keepdim=True)
        return coefficients, kept.to(tokens.dtype), experts

    def _mix(self, tokens: Tensor) -> Tensor:
        coefficients, kept, experts = self.route(tokens)
        gates, ups = self.gate.split(self.group_widths), self.up.split(self.group_widths)
        groups = list(zip(gates, ups, self.down.split(self.group_widths, 1), strict=True))
        dense, shared = (_swiglu(tokens, *group) for group in groups[:2])
        moe = torch.sigmoid(functional.linear(tokens, self.shared_gate)) * shared
        for expert, group in enumerate(groups[2:]):
            token, choice = (experts == expert).nonzero(as_tuple=True)
            moe = moe.index_add(0, token, kept[token, choice, None] * _swiglu(tokens[token], *group))
        return coefficients[:, :1] * moe + coefficients[:, 1:] * dense


def _swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return functional.linear(functional.silu(functional.linear(x, gate)) * functional.linear(x, up), down)
