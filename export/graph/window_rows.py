"""Attention within windows for operators that take a batch of equal rows: each window is a row, padded to a whole one under a mask.

The graph's further inputs, which the host computes (`runtime/prompting/windows.py`): window_rows int64 [windows, whole], window_mask
bool [windows, 1, whole, whole], window_places int64 [patch_count].
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from echovlm_edge.export.graph.lower import Lowering

AWAY = -1e4  # a score whose weight is 0; float16 can hold it
OFFSETS = 3  # SelfAttention's input, present where it has windows


def has_windows(node: ir.Node) -> bool:
    """Check whether a `SelfAttention` node attends within windows."""
    return len(node.inputs) > OFFSETS


def by_window(lowering: Lowering, node: ir.Node, x: ir.Value) -> ir.Value:
    """Rearrange rows [1, p, width] to [windows, whole, width]; what lies in the padding is any row."""
    rows = lowering.add_input("window_rows", ir.DataType.INT64, ["windows", _whole(node)])
    return lowering.node("Squeeze", [lowering.node("Gather", [x, rows], {"axis": 1}), _axis(lowering, 0)])


def window_mask(lowering: Lowering, node: ir.Node) -> ir.Value:
    """Return the mask bool [windows, 1, whole, whole]: true where the key is none of the padding."""
    whole = _whole(node)
    return lowering.add_input("window_mask", ir.DataType.BOOL, ["windows", 1, whole, whole])


def window_bias(lowering: Lowering, node: ir.Node, dtype: type[np.generic]) -> ir.Value:
    """Return the mask as what is added to the scores, [windows, 1, whole, whole]: 0 or `AWAY`."""

    def bias() -> ir.Value:
        kept, away = (lowering.constant(value, dtype) for value in (0, AWAY))
        return lowering.node("Where", [window_mask(lowering, node), kept, away])

    return lowering.shared("window_bias", bias)


def by_place(lowering: Lowering, node: ir.Node, y: ir.Value) -> ir.Value:
    """Rearrange what `by_window` has made, [windows, whole, width], back to [1, p, width]; anything else is left as it is."""
    if not has_windows(node):
        return y
    places = lowering.add_input("window_places", ir.DataType.INT64, ["patch_count"])
    joined = lowering.node("Flatten", [y], {"axis": 2})
    return lowering.node("Unsqueeze", [lowering.node("Gather", [joined, places], {"axis": 0}), _axis(lowering, 0)])


def _whole(node: ir.Node) -> int:
    return node.attributes["whole"].as_int()


def _axis(lowering: Lowering, axis: int) -> ir.Value:
    return lowering.constant([axis], np.int64)
