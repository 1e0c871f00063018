"""The decoder: token and image embeddings to logits, over a KV cache written in place."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from echovlm_edge.export.families.shape import DecoderConfig
from echovlm_edge.export.model.dual_path_moe import DualPathMoE
from echovlm_edge.export.model.operators import Linear, cached_attention


class DecoderAttention(nn.Module):
    """Grouped-query attention; the q, k and v projections are one product."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        width, kv_width = self.heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.qkv_proj = Linear(config.hidden_size, width + 2 * kv_width)
        self.o_proj = Linear(width, config.hidden_size, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """X [b, s, hidden_size] to the same shape, and the layer's caches."""
        attended, keys, values = cached_attention(self.qkv_proj(x), cos, sin, keys, values, past, self.heads)
        return self.o_proj(attended), keys, values


class DecoderLayer(nn.Module):
    """Attention, then DualPathMoE, each before its norm and around a residual."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = DecoderAttention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.dual_path_moe = DualPathMoE(config)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """X [b, s, hidden_size] to the same shape, and the layer's caches."""
        attended, keys, values = self.self_attn(self.input_layernorm(x), cos, sin, past, keys, values)
        x = x + attended
        return x + self.dual_path_moe(self.post_attention_layernorm(x)), keys, values


class Decoder(nn.Module):
    """One graph for prefill and decode."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)

    def moe_blocks(self) -> list[DualPathMoE]:
        """Each layer's DualPathMoE, first layer first."""
        return [block for block in self.modules() if isinstance(block, DualPathMoE)]

    def forward(
        self,
        embeddings: Tensor,
        cos: Tensor,
        sin: Tensor,
        past: Tensor,
        logit_rows: Tensor,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Run s new tokens of b sequences.

        Args:
            embeddings: [b, s, hidden_size].
            cos: [b, s, head_dim / 2], M-RoPE's angles of each token; sin: likewise.
            past: int64 [b], tokens already cached of each sequence.
            logit_rows: int64 [n], which of the b * s tokens to give logits for.
            keys: per layer [b, kv_heads, S, head_dim], written in place; values: likewise.

        Returns:
            Logits [n, vocab_size], and the caches.
        """
        x, present_keys, present_values = embeddings, [], []
        for layer, layer_keys, layer_values in zip(self.layers, keys, values, strict=True):
            x, written_keys, written_values = layer(x, cos, sin, past, layer_keys, layer_values)
            present_keys.append(written_keys)
            present_values.append(written_values)
        rows = x.flatten(0, 1).index_select(0, logit_rows)
        return self.lm_head(self.norm(rows)), present_keys, present_values
