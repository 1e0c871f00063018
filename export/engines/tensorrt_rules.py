"""Rules for TensorRT: 16-bit products and caches in a float32 graph, the standard's native layers, our plugin.

A strongly typed network computes in the types it is given. Products, attention and caches are float16; what lies between them
stays float32, above all the residual stream, which in models of this family grows past what float16 can hold. TensorRT fuses
the casts into the layers around them.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from echovlm_edge.export.engines.gpu_kernels import (
    HALF,
    MOST_EXPERTS,
    WIDTH_MULTIPLE,
    full,
    half,
    half_dual_path_moe,
    store_half,
    take_head,
    take_precision,
    take_widths,
    widths_of,
)
from echovlm_edge.export.graph import standard
from echovlm_edge.export.graph.lower import Attributes, Lowering, Rule
from echovlm_edge.export.graph.window_rows import by_place, has_windows, window_mask
from echovlm_edge.export.model.operators import DOMAIN
from echovlm_edge.export.weights.quantize import DequantizeColumns, Floating, GroupedBlocks, Precision
from echovlm_edge.runtime.contracts.errors import NotPossibleHere

PLUGIN: Attributes = {
    "plugin_namespace": DOMAIN,
    "plugin_version": "1",
}  # TensorRT's parser does not look at the domain
HEAD = "lm_head.weight"


def linear(lowering: Lowering, node: ir.Node) -> Sequence[ir.Value]:
    """Lower `echovlm::Linear` to MatMul in float16, after DequantizeLinear where the weight is quantized; the head to our plugin.

    All of the head is read for every token, and no TensorRT is known to fuse 8-bit blocks into so thin a product.
    """
    x, weight, *bias = node.inputs
    assert x is not None and weight is not None and weight.name is not None
    width = standard.fixed_size(weight, 1)
    precision = lowering.policy.layer(lowering.part, weight.name).for_widths([width])
    if weight.name == HEAD and take_head(precision):
        values, scale = lowering.store(weight.name, GroupedBlocks(precision))
        attributes: Attributes = {"bits": precision.bits, "block_size": precision.block_size, **PLUGIN}
        return [lowering.node("BlockQuantLinear", [x, values, scale], attributes, DOMAIN)]
    if precision.block_size == width:
        # TensorRT-RTX 1.7 fails on two products of one RMS norm, as SwiGLU's, whose weights are one block wide ("CHECK(is_value())").
        precision = precision.for_widths([width // 2])
    if precision.bits > 8 or weight.name == HEAD:
        (stored,) = lowering.store(weight.name, Floating(HALF, transposed=True))
    else:
        values, scale = lowering.store(weight.name, DequantizeColumns(precision, HALF))
        blocks: Attributes = {"axis": 0, "block_size": precision.block_size}
        stored = lowering.node("DequantizeLinear", [values, scale], blocks)
    y = lowering.node("MatMul", [half(lowering, x), stored])
    if bias and bias[0] is not None:
        y = lowering.node("Add", [y, store_half(lowering, bias[0])])
    return [full(lowering, y)]


def self_attention(lowering: Lowering, node: ir.Node) -> Sequence[ir.Value]:
    """Use Attention in float16."""
    heads, qkv = standard.rotated_self(lowering, node)
    masks = [window_mask(lowering, node)] if has_windows(node) else []
    inputs = [*(half(lowering, x) for x in qkv), *masks]
    attributes: Attributes = {"q_num_heads": heads, "kv_num_heads": heads}
    return [by_place(lowering, node, full(lowering, lowering.node("Attention", inputs, attributes)))]


def cached_attention(lowering: Lowering, node: ir.Node) -> Sequence[ir.Value]:
    """Use the standard's scatter and attention over float16 caches."""
    q, k, v = (half(lowering, x) for x in standard.rotated_cached(lowering, node))
    attended, keys, values = standard.attend_to_cache(lowering, node, q, k, v)
    return [full(lowering, attended), keys, values]


def dual_path_moe(lowering: Lowering, node: ir.Node) -> Sequence[ir.Value]:
    """Make one `echovlm::DualPathMoE` node in float16 that TensorRT finds our plugin for.

    Raises:
        NotPossibleHere: the GPU kernels do not take the model's widths.
    """
    hidden, groups = widths_of(node)
    if not take_widths(hidden, groups):
        raise NotPossibleHere(
            f"The GPU kernels of DualPathMoE take widths in multiples of {WIDTH_MULTIPLE} and up to {MOST_EXPERTS} experts of one "
            f"width; this checkpoint has hidden size {hidden} and widths {', '.join(map(str, groups))}: build it for --target cpu."
        )
    precision = standard.dual_path_moe_precision(lowering, node)
    return [half_dual_path_moe(lowering, node, precision if take_precision(precision) else Precision(16), PLUGIN)]


RULES: dict[str, Rule] = {
    "Linear": linear,
    "QuickGelu": standard.quick_gelu,
    "SelfAttention": self_attention,
    "CachedAttention": cached_attention,
    "DualPathMoE": dual_path_moe,
}
