"""One part of a bundle on disk: a small .onnx file beside one file of weights, written tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from echovlm_edge.export.checkpoint import Checkpoint
from echovlm_edge.export.lower import StoredWeight
from echovlm_edge.runtime.bundle import Part, TensorSpec, describe_file

ALIGNMENT = 4096  # a page: each tensor can be memory-mapped by itself


def write_part(
    folder: Path,
    name: str,
    precision: str,
    model: ir.Model,
    stored: Mapping[str, StoredWeight],
    checkpoint: Checkpoint,
    advance: Callable[[int], None],
) -> Part:
    """Read, encode and write a lowered part's weights one at a time, then its graph.

    Args:
        folder: the bundle being written.
        name: of the part.
        precision: what the summary calls its weights.
        model: the lowered graph.
        stored: its weights.
        checkpoint: where their values are.
        advance: told the bytes written after every weight.
    """
    data = f"{name}.data"
    with (folder / data).open("wb") as file:
        for weight in stored.values():
            arrays = weight.storage.encode(weight.weight.read(checkpoint).numpy())
            for initializer, array in zip(weight.initializers, arrays, strict=True):
                file.write(b"\0" * (-file.tell() % ALIGNMENT))
                offset, values = file.tell(), _bytes(array)
                file.write(values)
                initializer.const_value = _external(initializer, data, offset, len(values), folder)
                advance(len(values))
    ir.save(model, folder / f"{name}.onnx")
    return Part(
        name=name,
        precision=precision,
        files=(describe_file(folder, f"{name}.onnx"), describe_file(folder, data)),
        inputs=tuple(map(_describe, model.graph.inputs)),
        outputs=tuple(map(_describe, model.graph.outputs)),
        operators=_count_operators(model.graph),
    )


def stored_bytes(stored: Mapping[str, StoredWeight]) -> int:
    """How many bytes the weights will take, padding aside: the progress bar's whole."""
    return sum(_length(initializer) for weight in stored.values() for initializer in weight.initializers)


def _bytes(array: np.ndarray) -> memoryview | bytes:
    if array.dtype.name == "int4":
        nibbles = array.view(np.uint8).reshape(-1) & 15
        if nibbles.size % 2:
            nibbles = np.append(nibbles, np.uint8(0))
        return (nibbles[::2] | (nibbles[1::2] << 4)).tobytes()
    return array.tobytes()


def _length(value: ir.Value) -> int:
    assert value.shape is not None and value.dtype is not None
    return -(-int(np.prod(value.shape.numpy(), dtype=np.int64)) * value.dtype.bitwidth // 8)


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
