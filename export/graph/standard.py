"""Rules that need nothing but the ONNX standard (opset 24): the portable graph, and what every runtime can fall back on."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from echovlm_edge.export.graph.lower import Attributes, Lowering, Rule
from echovlm_edge.export.graph.window_rows import by_place, by_window, has_windows, window_mask
from echovlm_edge.export.model.operators import DOMAIN
from echovlm_edge.export.weights.quantize import DequantizeColumns, Floating, GroupedBlocks, Precision

# A product with one stored weight: (lowering, x, parameter, group or None, precision) to x W^T.
Product = Callable[[Lowering, ir.Value, str, "int | None", Precision], ir.Value]


def float_product(
    lowering: Lowering, x: ir.Value, parameter: str, group: int | None, dtype: ir.DataType = ir.DataType.FLOAT
) -> ir.Value:
    """Multiply by a floating-point weight, which is cast to float32 where it is stored narrower."""
    (weight,) = lowering.store(parameter, Floating(dtype, transposed=True), group)
    if dtype != ir.DataType.FLOAT:
        weight = lowering.node("Cast", [weight], {"to": int(ir.DataType.FLOAT)})
    return lowering.node("MatMul", [x, weight])


def product(lowering: Lowering, x: ir.Value, parameter: str, group: int | None, precision: Precision) -> ir.Value:
    """Compute x W^T by MatMul, after DequantizeLinear where the weight is quantized."""
    if precision.bits > 8:
        return float_product(lowering, x, parameter, group, precision.float_type)
    values, scale = lowering.store(parameter, DequantizeColumns(precision), group)
    weight = lowering.node("DequantizeLinear", [values, scale], {"axis": 0, "block_size": precision.block_size})
    return lowering.node("MatMul", [x, weight])


def linear(multiply: Product) -> Rule:
    """Lower `echovlm::Linear` with a given product."""

    def rule(lowering: Lowering, node: ir.Node) -> Sequence[ir.Value]:
        x, weight = _required(node, 2)
        assert weight.name is not None
        precision = lowering.policy.layer(lowering.part, weight.name).for_widths([fixed_size(weight, 1)])
        y = multiply(lowering, x, weight.name, None, precision)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        return [y if bias is None else lowering.node("Add", [y, bias])]

    return rule


def quick_gelu(lowering: Lowering, node: ir.Node) -> Sequence[ir.Value]:
    """Compute x * sigmoid(1.702 x)."""
    (x,) = _required(node, 1)
    scaled = lowering.node("Mul", [x, lowering.constant(1.702, np.float32)])
    return [lowering.node("Mul", [x, lowering.node("Sigmoid", [scaled])])]


def rotated_qkv(lowering: Lowering, node: ir.Node, heads: int, kv_heads: int) -> tuple[ir.Value, ir.Value, ir.Value]:
    """An attention node's first inputs (qkv, cos, sin) as rotary queries, rotary keys, and values."""
    qkv, cos, sin = _required(node, 3)
    dim = fixed_size(qkv, -1) // (heads + 2 * kv_heads)
    widths = lowering.constant([heads * dim, kv_heads * dim, kv_heads * dim], np.int64)
    q, k, v = lowering.nodes("Split", [qkv, widths], 3, {"axis": -1})

    def rotated(x: ir.Value, count: int) -> ir.Value:
        return lowering.node("RotaryEmbedding", [x, cos, sin], {"num_heads": count})

    return rotated(q, heads), rotated(k, kv_heads), v


def rotated_self(lowering: Lowering, node: ir.Node) -> tuple[int, tuple[ir.Value, ir.Value, ir.Value]]:
    """A `SelfAttention` node's heads, and its rotary queries, rotary keys, and values: a row for each window if it has windows."""
    heads = node.attributes["heads"].as_int()
    q, k, v = rotated_qkv(lowering, node, heads, heads)
    if has_windows(node):
        q, k, v = (by_window(lowering, node, x) for x in (q, k, v))
    return heads, (q, k, v)


def rotated_cached(lowering: Lowering, node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
    """A `CachedAttention` node's rotary queries, rotary new keys, and new values."""
    keys = _required(node, 6)[3]
    return rotated_qkv(lowering, node, node.attributes["heads"].as_int(), fixed_size(keys, 1))


def self_attention(lowering: Lowering, node: ir.Node) -> Sequence[ir.Value]:
    """Use Attention; without a mask, but for windows."""
    heads, qkv = rotated_self(lowering, node)
    masks = [window_mask(lowering, node)] if has_windows(node) else []
    attended = lowering.node("Attention", [*qkv, *masks], {"q_num_heads": heads, "kv_num_heads": heads})
    return [by_place(lowering, node, attended)]


def cached_attention(lowering: Lowering, node: ir.Node) -> Sequence[ir.Value]:
    """Use TensorScatter into the caches, then Attention over all of them under the input `mask`.

    `mask` is bool [batch, 1, sequence, context], true where a token attends; the host computes it.
    """
    return attend_to_cache(lowering, node, *rotated_cached(lowering, node))


def type_caches(lowering: Lowering, node: ir.Node) -> None:
    """Give a `CachedAttention` node's caches, inputs and outputs of the graph, the policy's type."""
    for cache in (*node.inputs[3:5], *node.outputs[1:]):
        assert cache is not None
        cache.type = ir.TensorType(lowering.policy.kv_cache)


def attend_to_cache(
    lowering: Lowering, node: ir.Node, q: ir.Value, k: ir.Value, v: ir.Value
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Compute `cached_attention` of q, k and v in the caches' type."""
    *_, keys, values, past = _required(node, 6)
    type_caches(lowering, node)
    heads = node.attributes["heads"].as_int()
    kv_heads, dim = fixed_size(keys, 1), fixed_size(keys, 3)
    query, new_keys, new_values = (
        _split_heads(lowering, x, count, dim) for x, count in ((q, heads), (k, kv_heads), (v, kv_heads))
    )
    scatter: Attributes = {"axis": 2, "mode": "linear"}
    present_keys = lowering.node("TensorScatter", [keys, new_keys, past], scatter)
    present_values = lowering.node("TensorScatter", [values, new_values, past], scatter)
    mask = lowering.add_input("mask", ir.DataType.BOOL, ["batch", 1, "sequence", "context"])
    attended = lowering.node("Attention", [query, present_keys, present_values, mask], {"scale": 1 / math.sqrt(dim)})
    tokens_first = lowering.node("Transpose", [attended], {"perm": [0, 2, 1, 3]})
    joined = lowering.node("Reshape", [tokens_first, lowering.constant([0, 0, heads * dim], np.int64)])
    return joined, present_keys, present_values


def dual_path_moe(lowering: Lowering, node: ir.Node) -> Sequence[ir.Value]:
    """Make one `echovlm::DualPathMoE` node with the weights packed as its specification defines.

    Scales are float16, which rounds them by 0.05 % at most and saves 3 % of the bytes that a token reads.
    """
    precision = dual_path_moe_precision(lowering, node)
    return [packed_dual_path_moe(lowering, node, _required(node, 8), precision, ir.DataType.FLOAT16)]


def dual_path_moe_precision(lowering: Lowering, node: ir.Node) -> Precision:
    """Return the precision that the policy stores the block's weights in."""
    x, *_, gate, _, _ = _required(node, 8)
    widths = node.attributes["group_widths"].as_ints()
    return lowering.policy.layer(lowering.part, gate.name or "").for_widths([fixed_size(x, -1), *widths])


def packed_dual_path_moe(
    lowering: Lowering,
    node: ir.Node,
    inputs: Sequence[ir.Value],
    precision: Precision,
    scale_type: ir.DataType,
    further: Attributes = types.MappingProxyType({}),
) -> ir.Value:
    """Make the node `echovlm::DualPathMoE` of these inputs, its weights in `precision`, with `further` attributes."""
    attributes: Attributes = {
        "group_widths": list(node.attributes["group_widths"].as_ints()),
        "top_k": node.attributes["top_k"].as_int(),
        "norm_topk_prob": node.attributes["norm_topk_prob"].as_int(),
        "bits": precision.bits if precision.bits <= 8 else 0,
        "block_size": precision.block_size if precision.bits <= 8 else 0,
        **further,
    }
    storage = GroupedBlocks(precision, scale_type) if precision.bits <= 8 else Floating(precision.float_type)
    stored = [lowering.store(value.name or "", storage) for value in inputs[5:]]
    weights = [tensors[index] for index in range(len(stored[0])) for tensors in stored]
    return lowering.node("DualPathMoE", [*inputs[:5], *weights], attributes, DOMAIN)


def spelled_out_dual_path_moe(multiply: Product) -> Rule:
    """Spell DualPathMoE out in standard operators, for a runtime without our library.

    Every expert runs on every token and is weighted by zero where it was not chosen: right, at the cost of the experts
    that were not chosen (a tenth of the published model's products). A block without experts is its dense group alone.
    """

    def rule(lowering: Lowering, node: ir.Node) -> Sequence[ir.Value]:
        x, router, shared_gate, coefficient, coefficient_bias, gate, up, down = _required(node, 8)
        assert gate.name and up.name and down.name
        widths = node.attributes["group_widths"].as_ints()
        policy = lowering.policy.layer(lowering.part, gate.name)
        outer, experts = policy.for_widths([fixed_size(x, -1)]), len(widths) - 2

        def swiglu(group: int) -> ir.Value:
            gated = multiply(lowering, x, gate.name or "", group, outer)
            lifted = multiply(lowering, x, up.name or "", group, outer)
            activated = lowering.node("Mul", [lowering.node("Mul", [gated, lowering.node("Sigmoid", [gated])]), lifted])
            return multiply(lowering, activated, down.name or "", group, policy.for_widths([widths[group]]))

        if node.attributes["dense_only"].as_int():
            return [swiglu(0)]

        def weighted(weight: ir.Value, value: ir.Value) -> ir.Value:
            return lowering.node("Mul", [weight, value])

        coefficients = lowering.node(
            "Softmax", [lowering.node("Add", [_small(lowering, x, coefficient), coefficient_bias])], {"axis": -1}
        )
        c_moe, c_dense = _columns(lowering, coefficients, 2)
        chosen = _chosen_experts(lowering, _small(lowering, x, router), node)
        moe = weighted(lowering.node("Sigmoid", [_small(lowering, x, shared_gate)]), swiglu(1))
        for expert, weight in enumerate(_columns(lowering, chosen, experts)):
            moe = lowering.node("Add", [moe, weighted(weight, swiglu(2 + expert))])
        return [lowering.node("Add", [weighted(c_moe, moe), weighted(c_dense, swiglu(0))])]

    return rule


def _chosen_experts(lowering: Lowering, logits: ir.Value, node: ir.Node) -> ir.Value:
    """Compute each token's weight of every expert, zero where it is not among the top k."""
    probabilities = lowering.node("Softmax", [logits], {"axis": -1})
    k = lowering.constant([node.attributes["top_k"].as_int()], np.int64)
    kept, experts = lowering.nodes("TopK", [probabilities, k], 2, {"axis": -1})
    if node.attributes["norm_topk_prob"].as_int():
        total = lowering.node("ReduceSum", [kept, lowering.constant([-1], np.int64)])
        kept = lowering.node("Div", [kept, total])
    none = lowering.node("ConstantOfShape", [lowering.node("Shape", [probabilities])])
    return lowering.node("ScatterElements", [none, experts, kept], {"axis": -1})


def _small(lowering: Lowering, x: ir.Value, parameter: ir.Value) -> ir.Value:
    """Multiply by a parameter that is never quantized."""
    assert parameter.name is not None
    return float_product(lowering, x, parameter.name, None)


def _columns(lowering: Lowering, x: ir.Value, count: int) -> Sequence[ir.Value]:
    return lowering.nodes("Split", [x], count, {"axis": -1, "num_outputs": count})


def _split_heads(lowering: Lowering, x: ir.Value, heads: int, dim: int) -> ir.Value:
    """Reshape [b, s, heads * dim] to [b, heads, s, dim]."""
    split = lowering.node("Reshape", [x, lowering.constant([0, 0, heads, dim], np.int64)])
    return lowering.node("Transpose", [split], {"perm": [0, 2, 1, 3]})


def fixed_size(value: ir.Value, axis: int) -> int:
    """Return the size of a fixed dimension."""
    assert value.shape is not None
    size = value.shape[axis]
    assert isinstance(size, int), f"{value.name} varies along axis {axis}"
    return size


def _required(node: ir.Node, count: int) -> list[ir.Value]:
    inputs = [value for value in node.inputs[:count] if value is not None]
    assert len(inputs) == count, f"{node.op_type} takes {count} inputs"
    return inputs


PORTABLE: dict[str, Rule] = {
    "Linear": linear(product),
    "QuickGelu": quick_gelu,
    "SelfAttention": self_attention,
    "CachedAttention": cached_attention,
    "DualPathMoE": dual_path_moe,
}

SPELLED_OUT: dict[str, Rule] = PORTABLE | {"DualPathMoE": spelled_out_dual_path_moe(product)}
