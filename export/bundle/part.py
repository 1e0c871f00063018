"""Write one part of a bundle: a small .onnx file that points into one file of weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from echovlm_edge.export.graph.lower import StoredWeight
from echovlm_edge.export.weights.weight_file import WeightFile
from echovlm_edge.runtime.bundle.manifest import Part, TensorSpec, describe_file

STACK_TRACE = "pkg.torch.onnx.stack_trace"  # paths of the machine that built: a bundle's bytes do not depend on where a package lies


def write_part(
    folder: Path, name: str, precision: str, model: ir.Model, stored: Mapping[str, StoredWeight], file: WeightFile
) -> Part:
    """Write a lowered part's graph next to its weights.

    Args:
        folder: the bundle being written.
        name: of the part.
        precision: what the summary calls its weights.
        model: the lowered graph.
        stored: its weights.
        file: where these lie, in the same order; it has been written.
    """
    for weight, places in zip(stored.values(), file.places, strict=True):
        for initializer, place in zip(weight.initializers, places, strict=True):
            initializer.const_value = _external(initializer, file.name, place.offset, place.length, folder)
    for node in model.graph.all_nodes():
        node.metadata_props.pop(STACK_TRACE, None)
    ir.save(model, folder / f"{name}.onnx")
    return Part(
        name=name,
        precision=precision,
        files=(describe_file(folder, f"{name}.onnx"), describe_file(folder, file.name)),
        inputs=tuple(map(_describe, model.graph.inputs)),
        outputs=tuple(map(_describe, model.graph.outputs)),
        operators=_count_operators(model.graph),
    )


def _external(value: ir.Value, location: str, offset: int, length: int, folder: Path) -> ir.ExternalTensor:
    assert value.dtype is not None and value.shape is not None and value.name is not None
    return ir.ExternalTensor(location, offset, length, value.dtype, shape=value.shape, name=value.name, base_dir=folder)


def _describe(value: ir.Value) -> TensorSpec:
    assert value.name is not None and value.dtype is not None and value.shape is not None
    shape = tuple(size if isinstance(size, int) else str(size.value) for size in value.shape)
    return TensorSpec(value.name, value.dtype.name.lower(), shape)


def _count_operators(graph: ir.Graph) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in graph:
        operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        counts[operator] = counts.get(operator, 0) + 1
    return dict(sorted(counts.items()))
