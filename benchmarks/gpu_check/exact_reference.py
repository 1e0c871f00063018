"""The PyTorch model in float32, with its weights rounded as a bundle stores them: what a GPU's arithmetic is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from echovlm_edge.export.model.dual_path_moe import DualPathMoE
from echovlm_edge.export.model.operators import Linear
from echovlm_edge.export.parity.reference import TorchBackend
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.export.weights.quantize import Precision, PrecisionPolicy
from echovlm_edge.export.weights.rounding import ROUNDINGS, Rounding
from echovlm_edge.runtime.bundle.manifest import Manifest


def exact_reference(checkpoint: Checkpoint, manifest: Manifest) -> TorchBackend:
    """Load a checkpoint, its weights with the values that its bundle's quantized ones stand for."""
    reference = TorchBackend(checkpoint)
    policy = PrecisionPolicy.of(manifest.precision, manifest.block_size)
    rounding = ROUNDINGS[manifest.rounding]
    for part, module in reference.parts.by_name().items():
        for path, inner in module.named_modules():
            precision = policy.layer(part, f"{path}.weight")
            if isinstance(inner, Linear):
                inner.weight.data = rounded(inner.weight.data, precision, [inner.weight.shape[1]], rounding, np.float16)
            elif isinstance(inner, DualPathMoE):
                _round_moe(inner, precision, manifest.operator_library is not None, rounding)
    return reference


def _round_moe(block: DualPathMoE, precision: Precision, operator: bool, rounding: Rounding) -> None:
    """Round a block as its operator has it, all groups in blocks of one size; or spelled out, each product in its own."""
    scale_type = np.float32 if operator else np.float16
    hidden, groups = block.gate.shape[1], block.group_widths
    outer = [hidden, *groups] if operator else [hidden]
    block.gate.data, block.up.data = (
        rounded(weight.data, precision, outer, rounding, scale_type) for weight in (block.gate, block.up)
    )
    columns = block.down.data.split(groups, dim=1)
    inner = [outer if operator else [width] for width in groups]
    block.down.data = torch.cat(
        [rounded(some, precision, widths, rounding, scale_type) for some, widths in zip(columns, inner, strict=True)],
        dim=1,
    )


def rounded(
    weight: Tensor, precision: Precision, widths: Sequence[int], rounding: Rounding, scale_type: DTypeLike
) -> Tensor:
    """Return the values that a weight stands for when it is stored in blocks that fit `widths`, their scales as `scale_type`.

    Floating ones, whose rounding is the GPU's error, stay.
    """
    stored = precision.for_widths(widths)
    if stored.bits > 8:
        return weight
    codes, scales = rounding(
        np.ascontiguousarray(weight.numpy()), stored.bits, stored.block_size, scale_type=scale_type
    )
    blocks = codes.reshape(*scales.shape, -1) * scales.astype(np.float32)[..., None]
    return torch.from_numpy(blocks.reshape(codes.shape))
