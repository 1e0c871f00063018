"""The PyTorch model in float32, with its weights rounded as a bundle stores them: what a GPU's arithmetic is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from echovlm_edge.export.checkpoint import Checkpoint
from echovlm_edge.export.model.dual_path_moe import DualPathMoE
from echovlm_edge.export.model.operators import Linear
from echovlm_edge.export.quantize import Precision, PrecisionPolicy
from echovlm_edge.export.reference import TorchBackend
from echovlm_edge.plugins.dual_path_moe.reference import dequantize_blocks, quantize_blocks
from echovlm_edge.runtime.bundle.manifest import Manifest


def exact_reference(checkpoint: Checkpoint, manifest: Manifest) -> TorchBackend:
    """Load a checkpoint, its weights with the values that its bundle's quantized ones stand for."""
    reference = TorchBackend(checkpoint)
    policy = PrecisionPolicy.of(manifest.precision, manifest.block_size)
    for part, module in reference.parts.by_name().items():
        for path, inner in module.named_modules():
            if isinstance(inner, Linear):
                weights, widths = [inner.weight], [inner.weight.shape[1]]
            elif isinstance(inner, DualPathMoE):
                weights, widths = [inner.gate, inner.up, inner.down], [inner.gate.shape[1], *inner.group_widths]
            else:
                continue
            precision = policy.layer(part, f"{path}.weight").for_widths(widths)
            for weight in weights:
                weight.data = rounded(weight.data, precision)
    return reference


def rounded(weight: Tensor, precision: Precision) -> Tensor:
    """Return the values that a stored weight stands for; floating ones, whose rounding is the GPU's error, stay."""
    if precision.bits > 8:
        return weight
    packed, scale = quantize_blocks(weight.numpy(), precision.bits, precision.block_size)
    return torch.from_numpy(dequantize_blocks(packed, scale, precision.bits))
