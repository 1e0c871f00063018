"""DualPathMoE for this project's GPU kernels: what they take, and the node in float16 that TensorRT and ONNX Runtime run by them."""

from __future__ import annotations

import types
from collections.abc import Sequence

import onnx_ir as ir

from echovlm_edge.export.graph import standard
from echovlm_edge.export.graph.lower import Attributes, Lowering
from echovlm_edge.export.weights.quantize import Floating, Precision

HALF, FULL = ir.DataType.FLOAT16, ir.DataType.FLOAT
KERNEL_BLOCKS = (64, 128)  # block sizes that the kernels read
WIDTH_MULTIPLE, MOST_EXPERTS = 64, 64  # that they take
TAKEN = (
    f"int4 in blocks of {' or '.join(map(str, KERNEL_BLOCKS))}, or fp16, and widths in multiples of {WIDTH_MULTIPLE}"
)


def half(lowering: Lowering, x: ir.Value) -> ir.Value:
    """Cast a float32 value to float16."""
    return lowering.node("Cast", [x], {"to": int(HALF)})


def full(lowering: Lowering, x: ir.Value) -> ir.Value:
    """Cast a float16 value to float32."""
    return lowering.node("Cast", [x], {"to": int(FULL)})


def store_half(lowering: Lowering, parameter: ir.Value) -> ir.Value:
    """Store a parameter that is never quantized in float16."""
    assert parameter.name is not None
    (stored,) = lowering.store(parameter.name, Floating(HALF))
    return stored


def take_widths(hidden: int, groups: Sequence[int]) -> bool:
    """Check whether the kernels take a model of these widths (plugins/dual_path_moe/launch/README.md)."""
    multiples = all(width % WIDTH_MULTIPLE == 0 for width in (hidden, *groups))
    return multiples and len(set(groups[2:])) <= 1 and len(groups) - 2 <= MOST_EXPERTS


def take_precision(precision: Precision) -> bool:
    """Check whether the kernels take weights that are stored so."""
    return precision.bits == 16 or (precision.bits == 4 and precision.block_size in KERNEL_BLOCKS)


def take_head(precision: Precision) -> bool:
    """Check whether the kernel `linear` takes a head that is stored so."""
    return precision.bits == 8 and precision.block_size in KERNEL_BLOCKS


def widths_of(node: ir.Node) -> tuple[int, Sequence[int]]:
    """Return the hidden width of an `echovlm::DualPathMoE` node, and its groups' widths."""
    x = node.inputs[0]
    assert x is not None
    return standard.fixed_size(x, -1), node.attributes["group_widths"].as_ints()


def half_dual_path_moe(
    lowering: Lowering, node: ir.Node, precision: Precision, further: Attributes = types.MappingProxyType({})
) -> ir.Value:
    """Make one `echovlm::DualPathMoE` node in float16 between casts, its weights in `precision`, with `further` attributes."""
    x, *parameters = (value for value in node.inputs if value is not None)
    small = [store_half(lowering, parameter) for parameter in parameters[:4]]
    inputs = [half(lowering, x), *small, *parameters[4:]]
    y = standard.packed_dual_path_moe(lowering, node, inputs, precision, ir.DataType.FLOAT, further)
    return full(lowering, y)
