"""Rules for TensorRT: 16-bit products and caches in a float32 graph, the standard's native layers, our plugin.

A strongly typed network computes in the types it is given. Products, attention and caches are float16; what lies between them
stays float32, above all the residual stream, which in models of this family grows past what float16 can hold. TensorRT fuses
the casts into the layers around them.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from echovlm_edge.export import standard
from echovlm_edge.export.lower import Attributes, Lowering, Rule
from echovlm_edge.export.model.operators import DOMAIN
from echovlm_edge.export.quantize import DequantizeColumns, Floating, Precision
from echovlm_edge.runtime.contracts.errors import NotPossibleHere

HALF, FULL = ir.DataType.FLOAT16, ir.DataType.FLOAT
PLUGIN: Attributes = {
    "plugin_namespace": DOMAIN,
    "plugin_version": "1",
}  # TensorRT's parser does not look at the domain
KERNEL_BLOCKS = (64, 128)  # block sizes that the GPU kernels read
WIDTH_MULTIPLE, MOST_EXPERTS = 64, 64  # that they take


def half(lowering: Lowering, x: ir.Value) -> ir.Value:
    """Cast a float32 value to float16."""
    return lowering.node("Cast", [x], {"to": int(HALF)})


def full(lowering: Lowering, x: ir.Value) -> ir.Value:
    """Cast a float16 value to float32."""
    return lowering.node("Cast", [x], {"to": int(FULL)})


def linear(lowering: Lowering, node: ir.Node) -> Sequence[ir.Value]:
    """Lower `echovlm::Linear` to MatMul in float16, after DequantizeLinear where the weight is quantized."""
    x, weight, *bias = node.inputs
    assert x is not None and weight is not None and weight.name is not None
    precision = lowering.policy.layer(lowering.part, weight.name).for_widths([standard.fixed_size(weight, 1)])
    if precision.bits > 8 or weight.name == "lm_head.weight":
        # All of the head is read for every token, and no TensorRT is known to fuse 8-bit blocks into so thin a product.
        (stored,) = lowering.store(weight.name, Floating(HALF, transposed=True))
    else:
        values, scale = lowering.store(weight.name, DequantizeColumns(precision, HALF))
        blocks: Attributes = {"axis": 0, "block_size": precision.block_size}
        stored = lowering.node("DequantizeLinear", [values, scale], blocks)
    y = lowering.node("MatMul", [half(lowering, x), stored])
    if bias and bias[0] is not None:
        y = lowering.node("Add", [y, store_half(lowering, bias[0])])
    return [full(lowering, y)]


def store_half(lowering: Lowering, parameter: ir.Value) -> ir.Value:
    """Store a parameter that is never quantized in float16."""
    assert parameter.name is not None
    (stored,) = lowering.store(parameter.name, Floating(HALF))
    return stored


def self_attention(lowering: Lowering, node: ir.Node) -> Sequence[ir.Value]:
    """Use Attention in float16."""
    heads, qkv = standard.rotated_self(lowering, node)
    halves = [half(lowering, x) for x in qkv]
    attributes: Attributes = {"q_num_heads": heads, "kv_num_heads": heads}
    return [full(lowering, lowering.node("Attention", halves, attributes))]


def cached_attention(lowering: Lowering, node: ir.Node) -> Sequence[ir.Value]:
    """Use the standard's scatter and attention over float16 caches."""
    q, k, v = (half(lowering, x) for x in standard.rotated_cached(lowering, node))
    attended, keys, values = standard.attend_to_cache(lowering, node, q, k, v)
    return [full(lowering, attended), keys, values]


def dual_path_moe(lowering: Lowering, node: ir.Node) -> Sequence[ir.Value]:
    """Make one `echovlm::DualPathMoE` node in float16 that TensorRT finds our plugin for."""
    x, *parameters = (value for value in node.inputs if value is not None)
    _check_widths(standard.fixed_size(x, -1), node.attributes["group_widths"].as_ints())
    precision = standard.dual_path_moe_precision(lowering, node)
    if precision.bits > 8 or precision.block_size not in KERNEL_BLOCKS:
        precision = Precision(16)
    small = [store_half(lowering, parameter) for parameter in parameters[:4]]
    inputs = [half(lowering, x), *small, *parameters[4:]]
    y = standard.packed_dual_path_moe(lowering, node, inputs, precision, ir.DataType.FLOAT, PLUGIN)
    return [full(lowering, y)]


def _check_widths(hidden: int, groups: Sequence[int]) -> None:
    """Refuse what plugins/dual_path_moe/cuda/README.md excludes.

    Raises:
        NotPossibleHere: the GPU kernels do not take these widths.
    """
    odd = [width for width in (hidden, *groups) if width % WIDTH_MULTIPLE]
    if odd or len(set(groups[2:])) > 1 or len(groups) - 2 > MOST_EXPERTS:
        raise NotPossibleHere(
            f"The GPU kernels of DualPathMoE take widths in multiples of {WIDTH_MULTIPLE} and up to {MOST_EXPERTS} experts of one "
            f"width; this checkpoint has hidden size {hidden} and widths {', '.join(map(str, groups))}: build it for --target cpu."
        )


RULES: dict[str, Rule] = {
    "Linear": linear,
    "QuickGelu": standard.quick_gelu,
    "SelfAttention": self_attention,
    "CachedAttention": cached_attention,
    "DualPathMoE": dual_path_moe,
}
