"""Rewrite a part's portable graph for TensorRT: fix the cache's length, add the best token, inline operators that it lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.inliner import inline_selected_functions

NATIVE_RELEASE = (
    10,
    15,
)  # the first TensorRT whose parser makes layers of attention, rotary embedding and KV-cache update
INLINED = ("Attention", "RotaryEmbedding")  # what the standard defines by a function that TensorRT parses


def write_graph(source: Path, target: Path, max_sequence: int, release: tuple[int, int]) -> onnx.ModelProto:
    """Write `source` for a release of TensorRT to `target`, in the same folder: the weights stay in their file.

    Args:
        source: a part's portable graph.
        target: where to write.
        max_sequence: what the dimension `context` becomes: TensorRT's KV-cache update wants a fixed capacity.
        release: major and minor version of TensorRT.
    """
    model = onnx.load(source, load_external_data=False)
    fix_dimension(model.graph, "context", max_sequence)
    if any(output.name == "logits" for output in model.graph.output):
        add_best(model.graph)
    if release < NATIVE_RELEASE:
        model = inline_lacking(model)
    onnx.save(model, target)
    return model


def fix_dimension(graph: onnx.GraphProto, name: str, size: int) -> None:
    """Make a varying dimension of the graph's values a number."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param == name:
                dimension.dim_value = size


def add_best(graph: onnx.GraphProto) -> None:
    """Add an output `best`, int64 [rows]: the index of each row's largest logit, so that greedy decoding copies one number."""
    rows = next(output for output in graph.output if output.name == "logits").type.tensor_type.shape.dim[0]
    graph.node.append(helper.make_node("ArgMax", ["logits"], ["best"], axis=-1, keepdims=0, name="best"))
    graph.output.append(helper.make_tensor_value_info("best", TensorProto.INT64, [rows.dim_param or rows.dim_value]))


def inline_lacking(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite a graph for a TensorRT before 10.15: missing operators become the operators by which the standard defines them.

    onnx's inliner does that, but for TensorScatter, which has no such definition, and for RMSNormalization, whose axes it
    computes where TensorRT wants constants.
    """
    spelled = [node for old in model.graph.node for node in SPELLED.get(old.op_type, _as_it_is)(old)]
    del model.graph.node[:]
    model.graph.node.extend(spelled)
    return inline_selected_functions(model, [("", name) for name in INLINED], inline_schema_functions=True)


class _Nodes:
    """The nodes that one node becomes, each named for it."""

    def __init__(self, origin: onnx.NodeProto) -> None:
        self.name = origin.name or origin.output[0]
        self.made: list[onnx.NodeProto] = []

    def add(self, operator: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        """Add a node; returns its output."""
        name = f"{self.name}/{len(self.made)}"
        self.made.append(helper.make_node(operator, inputs, [output or name], name=name, **attributes))
        return output or name

    def constant(self, value: object, dtype: type[np.generic] = np.int64) -> str:
        """Add a constant; returns its name."""
        return self.add("Constant", [], value=numpy_helper.from_array(np.array(value, dtype)))


def _as_it_is(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    return [node]


def _scattered(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Rewrite TensorScatter(cache [b, h, S, d], new [b, h, s, d], past [b]), axis 2, as ScatterElements at past + (0 .. s - 1)."""
    cache, new, past = node.input
    nodes = _Nodes(node)
    length = nodes.add("Squeeze", [nodes.add("Shape", [new], start=2, end=3)])
    steps = nodes.add("Range", [nodes.constant(0), length, nodes.constant(1)])
    first = nodes.add("Unsqueeze", [past, nodes.constant([1, 2, 3])])  # [b, 1, 1, 1]
    positions = nodes.add("Add", [first, nodes.add("Unsqueeze", [steps, nodes.constant([1])])])  # [b, 1, s, 1]
    indices = nodes.add("Expand", [positions, nodes.add("Shape", [new])])
    nodes.add("ScatterElements", [cache, indices, new], node.output[0], axis=2)
    return nodes.made


def _normalized(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Rewrite RMSNormalization(x, scale) of float32 x over its last axis: x / sqrt(mean(x^2) + eps) * scale (Zhang & Sennrich 2019)."""
    x, scale = node.input
    epsilon = next((attribute.f for attribute in node.attribute if attribute.name == "epsilon"), 1e-5)
    nodes = _Nodes(node)
    square = nodes.add("ReduceMean", [nodes.add("Mul", [x, x]), nodes.constant([-1])], keepdims=1)
    root = nodes.add("Sqrt", [nodes.add("Add", [square, nodes.constant(epsilon, np.float32)])])
    nodes.add("Mul", [nodes.add("Div", [x, root]), scale], node.output[0])
    return nodes.made


SPELLED = {"TensorScatter": _scattered, "RMSNormalization": _normalized}
