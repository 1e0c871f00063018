"""Sketch the parts without their arithmetic: graphs of the operators that hold weights, which are all that decides a bundle's size.

A plan lowers them by the target's own rules in milliseconds, where tracing takes PyTorch a quarter of a minute.
"""

from __future__ import annotations

import onnx_ir as ir
from torch import nn

from echovlm_edge.export.model import weights
from echovlm_edge.export.model.dual_path_moe import DualPathMoE
from echovlm_edge.export.model.operators import DOMAIN, Linear
from echovlm_edge.export.source.config import EchoVLMConfig


def sketched_parts(config: EchoVLMConfig) -> dict[str, ir.Model]:
    """Sketch each part, by its name, with the parameters of a traced part as inputs, in the same order; it cannot be run."""
    return {name: _sketch(part) for name, part in weights.parts_without_values(config).by_name().items()}


def _sketch(part: nn.Module) -> ir.Model:
    parameters = {name: _float(name, tuple(values.shape)) for name, values in part.named_parameters()}
    nodes = []
    for path, module in part.named_modules():
        own = [parameters[f"{path}.{name}".lstrip(".")] for name, _ in module.named_parameters(recurse=False)]
        nodes += _nodes(path, module, own)
    graph = ir.Graph(list(parameters.values()), [], nodes=nodes, opset_imports={"": 1, DOMAIN: 1})
    return ir.Model(graph, ir_version=10)


def _nodes(path: str, module: nn.Module, own: list[ir.Value]) -> list[ir.Node]:
    """Return the node that a module becomes when it is traced; where that is an operator of the standard, only a use of its weights."""
    if isinstance(module, Linear):
        x = _float(f"{path}/x", ("tokens", module.weight.shape[1]))
        return [ir.node("Linear", [x, *own], domain=DOMAIN, num_outputs=1)]
    if isinstance(module, DualPathMoE):
        x = _float(f"{path}/x", ("tokens", module.router.shape[1]))
        attributes: dict[str, int | list[int]] = {
            "group_widths": list(module.group_widths),
            "top_k": module.top_k,
            "norm_topk_prob": int(module.norm_topk_prob),
            "dense_only": int(module.dense_only),
        }
        return [ir.node("DualPathMoE", [x, *own], attributes, domain=DOMAIN, num_outputs=1)]
    return [ir.node("Identity", [value]) for value in own]


def _float(name: str, shape: tuple[int | str, ...]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))
