"""The operators the parts are written in: eager PyTorch on one side, one named ONNX node each on the other.

A traced part is a graph of standard operators and of these, domain `echovlm`; each target lowers them its own way
(`export/graph/lower.py`). So the graph that is lowered says what is computed, and no pattern has to be recognised in it.
"""

from __future__ import annotations

import torch
import torch.onnx.ops
from torch import Tensor, nn
from torch.nn import functional

DOMAIN = "echovlm"


def symbol(
    name: str,
    inputs: tuple[Tensor, ...],
    like: Tensor,
    shape: tuple[int | torch.SymInt, ...],
    **attributes: int | list[int],
) -> Tensor:
    """Add a node `echovlm::name` of `like`'s dtype and the given shape in the graph being traced."""
    node: Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{name}", inputs, attrs={**attributes}, dtype=like.dtype, shape=shape, version=1
    )
    return node


class Linear(nn.Module):
    """y = x W^T + b, with W [rows, columns] and b [rows] or None. Traced as `echovlm::Linear(x, W[, b])`."""

    def __init__(self, columns: int, rows: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns))
        self.bias = nn.Parameter(torch.empty(rows)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Project the last axis: [..., columns] to [..., rows]."""
        if not torch.compiler.is_exporting():
            return functional.linear(x, self.weight, self.bias)
        inputs = (x, self.weight) if self.bias is None else (x, self.weight, self.bias)
        return symbol("Linear", inputs, x, (*x.shape[:-1], self.weight.shape[0]))


class LayerNorm(nn.LayerNorm):
    """Layer normalisation with eps 1e-6, as Qwen2-VL's vision encoder has it."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)


class RMSNorm(nn.RMSNorm):
    """Normalisation by the root mean square with eps 1e-6, as Qwen2.5-VL's vision encoder has it."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)


def quick_gelu(x: Tensor) -> Tensor:
    """Compute x * sigmoid(1.702 x): CLIP's approximation of GELU (Hendrycks & Gimpel 2016, section 2)."""
    if torch.compiler.is_exporting():
        return symbol("QuickGelu", (x,), x, tuple(x.shape))
    return x * torch.sigmoid(1.702 * x)


def traced_mlp(x: Tensor, up: Linear, down: Linear, gate: Linear | None = None) -> Tensor:
    """Add down(quick_gelu(up x)), with a gate down(silu(gate x) * up x), as one node to the graph being traced.

    It is `echovlm::MLP(x, up, up_bias, down, down_bias[, gate, gate_bias])`; every layer has a bias.
    """
    layers = (up, down) if gate is None else (up, down, gate)
    parameters = [values for layer in layers for values in (layer.weight, layer.bias) if values is not None]
    return symbol("MLP", (x, *parameters), x, tuple(x.shape))


def rotate(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Apply the rotary embedding, halves convention: x [b, s, heads * d], cos and sin [b, s, d / 2] (Su et al. 2021, eq. 34).

    Pairs are (x_i, x_{i + d/2}); every head turns by the same angles.
    """
    batch, length, width = x.shape
    first, second = x.view(batch, length, heads, 2, width // heads // 2).unbind(3)
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    return torch.stack((first * cos - second * sin, second * cos + first * sin), dim=3).view(batch, length, width)


def self_attention(
    qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, offsets: Tensor | None = None, whole: int = 0
) -> Tensor:
    """Attend from every position to every position of its window, with rotary queries and keys, scale 1 / sqrt(d).

    Args:
        qkv: queries, keys and values side by side, [b, s, 3 * heads * d].
        cos: [b, s, d / 2], each position's angles; sin: likewise.
        heads: attention heads.
        offsets: int64 [windows + 1], from 0 to s, ascending: where each window begins. Without it all positions are one window.
        whole: positions of the largest window that there can be, for targets that pad the others.

    Returns:
        [b, s, heads * d].
    """
    if torch.compiler.is_exporting():
        shape = (*qkv.shape[:-1], qkv.shape[-1] // 3)
        if offsets is None:
            return symbol("SelfAttention", (qkv, cos, sin), qkv, shape, heads=heads)
        return symbol("SelfAttention", (qkv, cos, sin, offsets), qkv, shape, heads=heads, whole=whole)
    q, k, v = qkv.chunk(3, dim=-1)
    q, k = rotate(q, cos, sin, heads), rotate(k, cos, sin, heads)
    split = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))  # [b, heads, s, d] each
    sizes = [qkv.shape[1]] if offsets is None else offsets.diff().tolist()
    windows = zip(*(t.split(sizes, dim=2) for t in split), strict=True)
    attended = [functional.scaled_dot_product_attention(*window) for window in windows]
    return torch.cat(attended, dim=2).transpose(1, 2).flatten(2)


def cached_attention(
    qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, past: Tensor, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute causal attention with rotary queries and keys, over a KV cache that is written in place.

    Args:
        qkv: queries, new keys and new values side by side, [b, s, (heads + 2 * kv_heads) * d].
        cos: [b, s, d / 2], each token's angles; sin: likewise.
        keys: the cache [b, kv_heads, S, d]; values: likewise. Positions `past` to `past + s` are written.
        past: int64 [b], tokens already in each sequence's cache.
        heads: query heads; each KV head serves heads / kv_heads of them in turn (grouped-query attention).

    Returns:
        The attention's output [b, s, heads * d], and the two caches.
    """
    batch, length, _ = qkv.shape
    kv_heads, _, dim = keys.shape[1:]
    if torch.compiler.is_exporting():
        outputs = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::CachedAttention",
            (qkv, cos, sin, keys, values, past),
            attrs={"heads": heads},
            dtypes=(qkv.dtype, keys.dtype, values.dtype),
            shapes=((batch, length, heads * dim), keys.shape, values.shape),
            version=1,
        )
        return outputs[0], outputs[1], outputs[2]
    q, k, v = qkv.split([heads * dim, kv_heads * dim, kv_heads * dim], dim=-1)
    q, k = rotate(q, cos, sin, heads), rotate(k, cos, sin, kv_heads)
    position = past[:, None] + torch.arange(length)  # [b, s]
    rows = torch.arange(batch)[:, None]
    keys[rows, :, position] = k.view(batch, length, kv_heads, dim)
    values[rows, :, position] = v.view(batch, length, kv_heads, dim)
    filled = int(position.max()) + 1
    mask = torch.arange(filled) <= position[:, None, :, None]  # [b, 1, s, filled]
    query = q.view(batch, length, heads, dim).transpose(1, 2)
    output = functional.scaled_dot_product_attention(
        query, keys[:, :, :filled], values[:, :, :filled], attn_mask=mask, enable_gqa=True
    )
    return output.transpose(1, 2).reshape(batch, length, heads * dim), keys, values
