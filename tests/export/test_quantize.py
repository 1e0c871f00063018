"""Storages of quantized weights: what TensorRT asks of DequantizeLinear's scales."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from echovlm_edge.export.weights.quantize import DequantizeColumns, Precision
from echovlm_edge.export.weights.rounding import round_blocks


@pytest.mark.parametrize("bits", [4, 8])
def test_a_block_of_zeros_has_the_scale_one(bits: int) -> None:
    """Also one whose scale float16 cannot hold; every other block keeps its own."""
    weight = np.random.default_rng(0).standard_normal((6, 64), dtype=np.float32)
    weight[1, 32:] = 0
    weight[3] = 1e-12
    values, scales = DequantizeColumns(Precision(bits, 32), ir.DataType.FLOAT16).encode(weight, round_blocks)
    nothing = np.zeros((2, 6), bool)
    nothing[1, 1] = nothing[:, 3] = True
    assert ((scales == 1) == nothing).all() and (scales != 0).all()
    restored = (values.astype(np.float32).reshape(2, 32, 6) * scales[:, None].astype(np.float32)).reshape(64, 6)
    assert not restored[32:, 1].any() and not restored[:, 3].any()
    np.testing.assert_allclose(restored.T, weight, atol=float(np.abs(scales[~nothing]).max()))
