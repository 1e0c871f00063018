"""Rules for ONNX Runtime on the CPU: this project's operators, and its own where they are faster than the standard's.

Measured at the published width (onnxruntime 1.32): GroupQueryAttention works through the filled part of the cache only,
Attention-24 through all of it; MatMulNBits at accuracy level 4 quantizes activations to int8 and takes a third of the time.
"""

from __future__ import annotations

import types
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from echovlm_edge.export.graph import standard
from echovlm_edge.export.graph.lower import Attributes, Lowering, Rule
from echovlm_edge.export.graph.window_rows import by_place, has_windows, window_bias
from echovlm_edge.export.model.operators import DOMAIN
from echovlm_edge.export.weights.quantize import GroupedBlocks, MatMulNBitsBlocks, Precision
from echovlm_edge.plugins.attention.reference import KEY_BLOCK

MICROSOFT = "com.microsoft"
K_SCALE = 12  # GroupQueryAttention's input; v_scale follows it
ACCURACY_LEVEL = 4  # int8 activations, int32 accumulation within a block


def product(lowering: Lowering, x: ir.Value, parameter: str, group: int | None, precision: Precision) -> ir.Value:
    """Compute x W^T by MatMulNBits where the weight is quantized."""
    if precision.bits > 8:
        return standard.product(lowering, x, parameter, group, precision)
    stored = MatMulNBitsBlocks(precision)
    return matmul_nbits(lowering, x, parameter, group, stored, {"accuracy_level": ACCURACY_LEVEL})


def matmul_nbits(
    lowering: Lowering,
    x: ir.Value,
    parameter: str,
    group: int | None,
    storage: MatMulNBitsBlocks,
    further: Attributes = types.MappingProxyType({}),
) -> ir.Value:
    """Make x W^T a MatMulNBits node, in the type of x and of the stored scales, with `further` attributes."""
    packed, scale = lowering.store(parameter, storage, group)
    rows, blocks = standard.fixed_size(scale, 0), standard.fixed_size(scale, 1)
    attributes: Attributes = {
        "N": rows,
        "K": blocks * storage.precision.block_size,
        "bits": storage.precision.bits,
        "block_size": storage.precision.block_size,
        **further,
    }
    return lowering.node("MatMulNBits", [x, packed, scale], attributes, MICROSOFT)


def quick_gelu(lowering: Lowering, node: ir.Node) -> Sequence[ir.Value]:
    """Make quick GELU one fused node."""
    return [lowering.node("QuickGelu", node.inputs, {"alpha": 1.702}, MICROSOFT)]


def self_attention(lowering: Lowering, node: ir.Node) -> Sequence[ir.Value]:
    """Use MultiHeadAttention: 74 ms against Attention's 85 on a 640 x 480 frame's block of the published model."""
    heads, qkv = standard.rotated_self(lowering, node)
    return [by_place(lowering, node, multi_head_attention(lowering, node, heads, qkv, np.float32))]


def multi_head_attention(
    lowering: Lowering, node: ir.Node, heads: int, qkv: Sequence[ir.Value], dtype: type[np.generic]
) -> ir.Value:
    """Compute `self_attention` of queries, keys and values in the type of the arithmetic; windows are rows, padded."""
    bias = [None, None, window_bias(lowering, node, dtype)] if has_windows(node) else []
    return lowering.node("MultiHeadAttention", [*qkv, *bias], {"num_heads": heads}, MICROSOFT)


def cached_attention(lowering: Lowering, node: ir.Node) -> Sequence[ir.Value]:
    """Use GroupQueryAttention with past and present bound to one buffer; causal by itself, so that no mask is needed.

    The caches are of the policy's type; int8 ones have a scale per channel, given later (see `kv_calibration.py`).
    """
    return grouped_query_attention(lowering, node, *standard.rotated_cached(lowering, node))


def grouped_query_attention(
    lowering: Lowering, node: ir.Node, q: ir.Value, k: ir.Value, v: ir.Value
) -> Sequence[ir.Value]:
    """Compute `cached_attention` of q, k and v in the type of the attention's arithmetic; returns the output and the two caches."""
    *_, keys, values, past = node.inputs
    assert keys is not None and values is not None
    standard.type_caches(lowering, node)
    inputs: list[ir.Value | None] = [q, k, v, keys, values]
    attributes: Attributes = {
        "num_heads": node.attributes["heads"].as_int(),
        "kv_num_heads": standard.fixed_size(keys, 1),
    }

    def total_tokens() -> ir.Value:
        new_tokens = lowering.node("Shape", [lowering.input("embeddings")], {"start": 1, "end": 2})
        return lowering.node("Add", [past, new_tokens])

    def last_token() -> ir.Value:
        total = lowering.shared("total_tokens", total_tokens)
        last = lowering.node("Sub", [total, lowering.constant(1, np.int64)])
        return lowering.node("Cast", [last], {"to": int(ir.DataType.INT32)})

    def longest() -> ir.Value:
        total = lowering.shared("total_tokens", total_tokens)
        return lowering.node(
            "Cast", [lowering.node("ReduceMax", [total], {"keepdims": 0})], {"to": int(ir.DataType.INT32)}
        )

    inputs += [lowering.shared("last_token", last_token), lowering.shared("longest", longest)]
    if lowering.policy.kv_cache == ir.DataType.INT8:
        channels = [standard.fixed_size(keys, 1) * standard.fixed_size(keys, 3)]
        scales = (lowering.later(f"{cache.name}.scale", ir.DataType.FLOAT, channels) for cache in (keys, values))
        inputs += [*[None] * (K_SCALE - len(inputs)), *scales]
        attributes = {
            **attributes,
            "k_quant_type": "PER_CHANNEL",
            "v_quant_type": "PER_CHANNEL",
            "kv_cache_bit_width": 8,
        }
    return lowering.nodes("GroupQueryAttention", inputs, 3, attributes, MICROSOFT)


def block_quant_linear(lowering: Lowering, node: ir.Node) -> Sequence[ir.Value] | None:
    """Lower `echovlm::Linear` to one BlockQuantLinear node where the weight is quantized."""
    x, weight, *bias = node.inputs
    precision = linear_precision(lowering, weight)
    if precision.bits > 8:
        return SPELLED_OUT["Linear"](lowering, node)
    stored = store_blocks(lowering, weight, precision)
    attributes: Attributes = {"bits": precision.bits, "block_size": precision.block_size}
    return [lowering.node("BlockQuantLinear", [x, *stored, *bias], attributes, DOMAIN)]


def block_quant_mlp(lowering: Lowering, node: ir.Node) -> Sequence[ir.Value] | None:
    """Lower `echovlm::MLP` to one BlockQuantMLP node where all its weights have the same bits."""
    x, up, up_bias, down, down_bias, *gated = node.inputs
    gate, gate_bias = gated or (None, None)
    entering, leaving = linear_precision(lowering, up), linear_precision(lowering, down)
    if {entering} != {linear_precision(lowering, weight) for weight in (up, gate) if weight is not None}:
        return None
    if leaving.bits != entering.bits or leaving.bits > 8:
        return None
    # In the order in which the layers are stored if they are apart.
    stored_gate = [] if gate is None else [*store_blocks(lowering, gate, entering), gate_bias]
    weights = [*store_blocks(lowering, up, entering), *store_blocks(lowering, down, leaving)]
    attributes: Attributes = {
        "bits": entering.bits,
        "block_size": entering.block_size,
        "inner_block_size": leaving.block_size,
    }
    inputs = [x, *weights, up_bias, down_bias, *stored_gate]
    return [lowering.node("BlockQuantMLP", inputs, attributes, DOMAIN)]


def linear_precision(lowering: Lowering, weight: ir.Value | None) -> Precision:
    """Return the precision that the policy stores a linear layer's weight in."""
    assert weight is not None and weight.name is not None
    return lowering.policy.layer(lowering.part, weight.name).for_widths([standard.fixed_size(weight, 1)])


def store_blocks(lowering: Lowering, weight: ir.Value | None, precision: Precision) -> tuple[ir.Value, ...]:
    """Store a weight as this project's operators take it, with float16 scales: returns its packed values and scales."""
    assert weight is not None and weight.name is not None
    return lowering.store(weight.name, GroupedBlocks(precision, ir.DataType.FLOAT16))


def own_self_attention(lowering: Lowering, node: ir.Node) -> Sequence[ir.Value]:
    """`echovlm::SelfAttention`, rotary and windows inside; of quantized bundles in bytes where the processor multiplies them."""
    attributes: Attributes = {
        "heads": node.attributes["heads"].as_int(),
        "bits": lowering.policy.image_attention_bits,
    }
    return [lowering.node("SelfAttention", node.inputs, attributes, DOMAIN)]


def packed_attention(lowering: Lowering, node: ir.Node) -> Sequence[ir.Value]:
    """`echovlm::CachedAttention` on packed rows: the tokens of all sequences side by side, each with its slot and position.

    The caches are inputs that it writes in place, so that the graph has none among its outputs; `past` is no longer read.
    """
    qkv, cos, sin, keys, values, _ = node.inputs
    assert keys is not None and values is not None
    standard.type_caches(lowering, node)
    kv_heads, dim = standard.fixed_size(keys, 1), standard.fixed_size(keys, 3)
    keys.shape = ir.Shape(["slots", kv_heads, "blocks", dim, KEY_BLOCK])
    values.shape = ir.Shape(["slots", kv_heads, "context", dim])
    inputs = [
        *(qkv, cos, sin),
        *(lowering.add_input(name, ir.DataType.INT64, ["sequence"]) for name in ("slots", "positions")),
        *(keys, values),
    ]
    if lowering.policy.kv_cache == ir.DataType.INT8:
        inputs += [
            lowering.later(f"{cache.name}.scale", ir.DataType.FLOAT, [kv_heads * dim]) for cache in (keys, values)
        ]
    attributes: Attributes = {"heads": node.attributes["heads"].as_int(), "kv_heads": kv_heads}
    return [lowering.node("CachedAttention", inputs, attributes, DOMAIN)]


# Works without this project's operator library.
SPELLED_OUT: dict[str, Rule] = {
    "Linear": standard.linear(product),
    "QuickGelu": quick_gelu,
    "SelfAttention": self_attention,
    "CachedAttention": cached_attention,
    "DualPathMoE": standard.spelled_out_dual_path_moe(product),
}

NATIVE: dict[str, Rule] = SPELLED_OUT | {
    "Linear": block_quant_linear,
    "MLP": block_quant_mlp,
    "SelfAttention": own_self_attention,
    "CachedAttention": packed_attention,
    "DualPathMoE": standard.dual_path_moe,
}
