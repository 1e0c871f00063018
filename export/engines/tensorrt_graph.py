"""A part's portable graph as one TensorRT takes it: the cache's length fixed, the best token added, lacking operators inlined."""

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
)  # the first TensorRT with rotary embedding, attention and KV-cache update as layers of the parser
LACKING = (
    "Attention",
    "RotaryEmbedding",
    "RMSNormalization",
)  # before that; TensorScatter, no function, is spelled out below


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
    """A further output `best`, int64 [rows]: the index of each row's largest logit, so that greedy decoding copies one number."""
    rows = next(output for output in graph.output if output.name == "logits").type.tensor_type.shape.dim[0]
    graph.node.append(helper.make_node("ArgMax", ["logits"], ["best"], axis=-1, keepdims=0, name="best"))
    graph.output.append(helper.make_tensor_value_info("best", TensorProto.INT64, [rows.dim_param or rows.dim_value]))


def inline_lacking(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same computation for a TensorRT before 10.15: lacking operators become what the standard defines them by."""
    spelled = [node for old in model.graph.node for node in _without_tensor_scatter(old)]
    del model.graph.node[:]
    model.graph.node.extend(spelled)
    functions = [("", name) for name in LACKING]
    return inline_selected_functions(model, functions, inline_schema_functions=True)


def _without_tensor_scatter(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """TensorScatter(cache [b, h, S, d], new [b, h, s, d], past [b]), axis 2, as ScatterElements at positions past + (0 .. s - 1)."""
    if node.op_type != "TensorScatter":
        return [node]
    cache, new, past = node.input
    made: list[onnx.NodeProto] = []

    def add(operator: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        name = f"{node.name}/{len(made)}"
        made.append(helper.make_node(operator, inputs, [output or name], name=name, **attributes))
        return output or name

    def number(value: int | list[int]) -> str:
        return add("Constant", [], value=numpy_helper.from_array(np.array(value, np.int64)))

    length = add("Squeeze", [add("Shape", [new], start=2, end=3)])
    steps = add("Unsqueeze", [add("Range", [number(0), length, number(1)]), number([1])])  # [s, 1]
    positions = add("Add", [add("Unsqueeze", [past, number([1, 2, 3])]), steps])  # [b, 1, s, 1]
    indices = add("Expand", [positions, add("Shape", [new])])
    add("ScatterElements", [cache, indices, new], node.output[0], axis=2)
    return made
