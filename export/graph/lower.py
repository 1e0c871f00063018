"""Lower a traced graph: each `echovlm::` operator becomes what a target runs, each parameter what it stores."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from echovlm_edge.export.graph.expand import EXPANSIONS
from echovlm_edge.export.model.operators import DOMAIN
from echovlm_edge.export.model.weights import Weight
from echovlm_edge.export.weights.quantize import Floating, PrecisionPolicy, Storage

Attributes = Mapping[str, "int | float | str | Sequence[int]"]


@dataclass(frozen=True)
class StoredWeight:
    """One weight of a lowered graph: which initializers it becomes, and how."""

    weight: Weight
    storage: Storage
    initializers: tuple[ir.Value, ...]


@dataclass
class Lowering:
    """One part on its way to one target: makes nodes, constants and stored weights for the rules."""

    graph: ir.Graph
    part: str
    weights: Mapping[str, Weight]
    shapes: Callable[[Weight], tuple[int, ...]]
    policy: PrecisionPolicy
    stored: dict[str, StoredWeight] = field(default_factory=dict)
    _nodes: list[ir.Node] = field(default_factory=list)
    _shared: dict[str, ir.Value] = field(default_factory=dict)
    _count: int = 0

    def node(
        self, op_type: str, inputs: Sequence[ir.Value | None], attributes: Attributes | None = None, domain: str = ""
    ) -> ir.Value:
        """Add a node with one output; returns that."""
        return self.nodes(op_type, inputs, 1, attributes, domain)[0]

    def nodes(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        outputs: int,
        attributes: Attributes | None = None,
        domain: str = "",
    ) -> Sequence[ir.Value]:
        """Add a node with several outputs; returns them."""
        self._count += 1
        name = f"{self.part}/{op_type}_{self._count}"
        values = [ir.Value(name=f"{name}:{index}") for index in range(outputs)]
        self._nodes.append(ir.node(op_type, inputs, attributes, domain=domain, name=name, outputs=values))
        if domain:
            self.graph.opset_imports.setdefault(domain, 1)
        return values

    def constant(self, value: object, dtype: type[np.generic]) -> ir.Value:
        """Return a small constant, shared by all that ask for the same."""
        array = np.array(value, dtype=dtype)
        name = f"constant/{array.dtype}/{array.tolist()}"
        if name not in self.graph.initializers:
            tensor = ir.tensor(array, name=name)
            made = ir.Value(
                name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
            )
            self.graph.register_initializer(made)
        return self.graph.initializers[name]

    def shared(self, name: str, make: Callable[[], ir.Value]) -> ir.Value:
        """Return a value that every layer uses, made once, at its first use."""
        if name not in self._shared:
            self._shared[name] = make()
        return self._shared[name]

    def input(self, name: str) -> ir.Value:
        """Return one of the part's inputs."""
        return next(value for value in self.graph.inputs if value.name == name)

    def add_input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        """Return a further input that the target needs, made once."""
        if all(value.name != name for value in self.graph.inputs):
            self.graph.inputs.append(ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape)))
        return self.input(name)

    def later(self, name: str, dtype: ir.DataType, shape: Sequence[int]) -> ir.Value:
        """Declare a small initializer whose values are set before the graph is written."""
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self.graph.initializers[name] = value
        return value

    def store(self, name: str, storage: Storage, group: int | None = None) -> tuple[ir.Value, ...]:
        """Return the initializers of the parameter `name`, or of one of the tensors that it is made of."""
        weight = self.weights[name] if group is None else self.weights[name].part(group)
        base = name if group is None else f"{name}.{group}"
        tensors = storage.tensors(self.shapes(weight))
        key = base + tensors[0].ending
        if key not in self.stored:
            values = tuple(
                ir.Value(name=base + made.ending, type=ir.TensorType(made.dtype), shape=ir.Shape(made.shape))
                for made in tensors
            )
            self.stored[key] = StoredWeight(weight, storage, values)
        return self.stored[key].initializers

    def take_nodes(self) -> list[ir.Node]:
        """Return the nodes made since the last call, in order."""
        nodes, self._nodes = self._nodes, []
        return nodes


# A node to the values that replace its outputs; outputs at the end that nothing but the graph gives out may be left off. None, before
# anything is made, where the node is to be expanded (`export/graph/expand.py`), as it is without a rule.
Rule = Callable[[Lowering, ir.Node], "Sequence[ir.Value] | None"]


def add_best(model: ir.Model) -> None:
    """Add an output `best`, int64 [rows], to a decoder: the index of each row's largest logit, so that one number is copied back."""
    graph = model.graph
    logits = next(value for value in graph.outputs if value.name == "logits")
    best = ir.Value(name="best", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([logits.shape[0]]))  # type: ignore[index]
    graph.append(ir.node("ArgMax", [logits], {"axis": -1, "keepdims": 0}, name="best", outputs=[best]))
    graph.outputs.append(best)


def lower(
    model: ir.Model,
    part: str,
    weights: Mapping[str, Weight],
    shapes: Callable[[Weight], tuple[int, ...]],
    policy: PrecisionPolicy,
    rules: Mapping[str, Rule],
) -> dict[str, StoredWeight]:
    """Lower a traced model in place by a target's rules, one for each operator of domain `echovlm`.

    Args:
        model: the traced part; its parameters are inputs and become initializers without values.
        part: its name.
        weights: what each parameter is made of.
        shapes: the shape of such a weight.
        policy: the precision of each linear layer.
        rules: operator name to the function that rebuilds its outputs; operators that can be expanded need none.

    Returns:
        The stored weights, in the order of their first use: their values are still to be written.
    """
    graph = model.graph
    lowering = Lowering(graph, part, weights, shapes, policy)
    pending = deque(graph)
    while pending:
        node = pending.popleft()
        if node.domain != DOMAIN:
            continue
        rule = rules.get(node.op_type)
        outputs = rule(lowering, node) if rule else None
        if outputs is None:
            expanded = EXPANSIONS[node.op_type](node)
            _replace(graph, node, expanded, expanded[-1].outputs)
            pending.extendleft(reversed(expanded))
        else:
            _replace(graph, node, lowering.take_nodes(), outputs)
    for value in list(graph.inputs):
        if value.name in weights:
            graph.inputs.remove(value)
            if value.uses():
                assert value.name is not None
                (initializer,) = lowering.store(value.name, Floating())
                value.replace_all_uses_with(initializer)
        elif not value.uses():
            graph.inputs.remove(value)
    for stored in lowering.stored.values():
        for initializer in stored.initializers:
            assert initializer.name is not None
            graph.initializers[initializer.name] = initializer
    graph.opset_imports.pop("pkg.onnxscript.torch_lib.common", None)
    return lowering.stored


def _replace(graph: ir.Graph, node: ir.Node, nodes: Sequence[ir.Node], outputs: Sequence[ir.Value]) -> None:
    """Put nodes in the place of one, and `outputs` in that of its first outputs; the graph no longer gives out the others."""
    kept = list(node.outputs)[: len(outputs)]
    for old in node.outputs[len(outputs) :]:
        graph.outputs.remove(old)
    for old, new in zip(kept, outputs, strict=True):
        new.name, new.shape, new.type = old.name, old.shape, old.type
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, kept, list(outputs))
