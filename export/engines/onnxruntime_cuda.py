"""Rules for ONNX Runtime on a GPU: its own operators in float16, in a float32 graph, and DualPathMoE by this project's kernels.

Its GroupQueryAttention has no float32 on a GPU, and the products are at their best in float16.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from echovlm_edge.export.engines import onnxruntime
from echovlm_edge.export.engines.gpu_kernels import (
    HALF,
    full,
    half,
    half_dual_path_moe,
    take_precision,
    take_widths,
    widths_of,
)
from echovlm_edge.export.graph import standard
from echovlm_edge.export.graph.lower import Lowering, Rule
from echovlm_edge.export.graph.window_rows import by_place
from echovlm_edge.export.weights.quantize import Floating, MatMulNBitsBlocks, Precision


def product(lowering: Lowering, x: ir.Value, parameter: str, group: int | None, precision: Precision) -> ir.Value:
    """Compute x W^T in float16, by MatMulNBits where the weight is quantized; x and the result are float32."""
    if precision.bits > 8:
        (weight,) = lowering.store(parameter, Floating(HALF, transposed=True), group)
        return full(lowering, lowering.node("MatMul", [half(lowering, x), weight]))
    stored = MatMulNBitsBlocks(precision, HALF)
    return full(lowering, onnxruntime.matmul_nbits(lowering, half(lowering, x), parameter, group, stored))


def self_attention(lowering: Lowering, node: ir.Node) -> Sequence[ir.Value]:
    """Use MultiHeadAttention in float16."""
    heads, qkv = standard.rotated_self(lowering, node)
    halves = [half(lowering, x) for x in qkv]
    attended = onnxruntime.multi_head_attention(lowering, node, heads, halves, np.float16)
    return [by_place(lowering, node, full(lowering, attended))]


def cached_attention(lowering: Lowering, node: ir.Node) -> Sequence[ir.Value]:
    """Use GroupQueryAttention over float16 caches."""
    q, k, v = (half(lowering, x) for x in standard.rotated_cached(lowering, node))
    attended, keys, values = onnxruntime.grouped_query_attention(lowering, node, q, k, v)
    return [full(lowering, attended), keys, values]


def dual_path_moe(lowering: Lowering, node: ir.Node) -> Sequence[ir.Value] | None:
    """Make one `echovlm::DualPathMoE` node where the GPU kernels take the model's weights; elsewhere spell it out."""
    precision = standard.dual_path_moe_precision(lowering, node)
    if take_widths(*widths_of(node)) and take_precision(precision):
        return [half_dual_path_moe(lowering, node, precision)]
    return SPELLED_OUT["DualPathMoE"](lowering, node)


# Works without this project's kernels.
SPELLED_OUT: dict[str, Rule] = {
    "Linear": standard.linear(product),
    "QuickGelu": onnxruntime.quick_gelu,
    "SelfAttention": self_attention,
    "CachedAttention": cached_attention,
    "DualPathMoE": standard.spelled_out_dual_path_moe(product),
}

NATIVE: dict[str, Rule] = SPELLED_OUT | {"DualPathMoE": dual_path_moe}
