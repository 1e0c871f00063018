"""Expand operators that stand for several others, for a target without a rule of its own for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from echovlm_edge.export.model.operators import DOMAIN


def expand_mlp(node: ir.Node) -> Sequence[ir.Node]:
    """Expand `echovlm::MLP` to its two or three `Linear` and what is between them."""
    x, up, up_bias, down, down_bias, *gate = node.inputs
    assert x is not None and x.shape is not None and up is not None and up.shape is not None
    inner = ir.Shape([*list(x.shape)[:-1], up.shape[0]])
    nodes: list[ir.Node] = []

    def add(op_type: str, inputs: Sequence[ir.Value | None], domain: str = "") -> ir.Value:
        name = f"{node.name}/{op_type}_{len(nodes)}"
        output = ir.Value(name=f"{name}:0", type=x.type, shape=inner)
        nodes.append(ir.node(op_type, inputs, domain=domain, name=name, outputs=[output]))
        return output

    if gate:
        gated = add("Linear", [x, *gate], DOMAIN)
        activated = add("Mul", [gated, add("Sigmoid", [gated])])
        values = add("Mul", [activated, add("Linear", [x, up, up_bias], DOMAIN)])
    else:
        values = add("QuickGelu", [add("Linear", [x, up, up_bias], DOMAIN)], DOMAIN)
    add("Linear", [values, down, down_bias], DOMAIN)
    return nodes


# An operator of domain `echovlm` to nodes in order, the last of which gives its output.
EXPANSIONS: Mapping[str, Callable[[ir.Node], Sequence[ir.Node]]] = {"MLP": expand_mlp}
