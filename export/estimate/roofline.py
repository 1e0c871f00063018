"""Bound the time that a model needs on a device, and the memory that it takes there, by the roofline.

The roofline of Williams, Waterman & Patterson 2009: a stage takes as long as its bytes at the memory's bandwidth, or as its
operations at the arithmetic's rate, whichever is longer. `runtime.bundle.cost_model` counts the bytes and operations; here is how a
target stores each kind of weight, and what its device can do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from echovlm_edge.export.calibration.rounding.mixed import bits_of
from echovlm_edge.export.devices import Device
from echovlm_edge.export.engines.gpu_kernels import KERNEL_BLOCKS, take_precision, take_widths
from echovlm_edge.export.targets import Target
from echovlm_edge.export.weights.quantize import CACHE_TYPES, Precision, PrecisionPolicy
from echovlm_edge.runtime.bundle.architectures import text_model
from echovlm_edge.runtime.bundle.cost_model import Cost, CostModel, ModelShape, Storage, cache_token_bytes

WORKING_GB = 0.6  # the device's context, kernels and activations: an allowance


@dataclass(frozen=True)
class Roofline:
    """A model in one precision for one target.

    Attributes:
        shape: the model's.
        target: how its weights are stored, and whether attention works through the whole cache.
        policy: the precision of each layer.
        max_sequence: the cache's capacity in tokens.
        longest_context: that the model takes, in tokens.
        bits: of a weight of the decoder's layers on average, with its share of the scales; None for what the policy takes.
    """

    shape: ModelShape
    target: Target
    policy: PrecisionPolicy
    max_sequence: int
    longest_context: int
    bits: float | None = None

    @classmethod
    def of(
        cls,
        config: Mapping[str, Any],
        target: Target,
        policy: PrecisionPolicy,
        max_sequence: int,
        bits: float | None = None,
    ) -> Roofline:
        """Take the model from a checkpoint's config.json."""
        longest = int(text_model(config).get("max_position_embeddings", 32768))
        return cls(ModelShape.of(config), target, policy, max_sequence, longest, bits)

    @property
    def costs(self) -> CostModel:
        """Return the model that counts what the stages read and compute."""
        # GroupQueryAttention reads what is filled; Attention under a mask, all of the cache.
        filled = self.target.name in ("cpu", "cuda")
        return CostModel(self.shape, self.storage, not self.one_operator, None if filled else self.max_sequence)

    @property
    def one_operator(self) -> bool:
        """Whether DualPathMoE runs as one operator, which reads the chosen experts only; otherwise every expert runs."""
        if self.target.name != "cuda":
            return self.target.operator_library is not None
        widths = (self.shape.hidden, self.shape.group_widths)
        precision = self.policy.layer("decoder", "gate").for_widths([widths[0], *widths[1]])
        return self.target.operator_library is not None and take_widths(*widths) and take_precision(precision)

    @property
    def storage(self) -> Storage:
        """Return the bytes of each kind of stored weight."""
        shape, weight = self.shape, self.bytes_per_weight
        inner = shape.merged * shape.vision_width
        mixed = (self.bits - bits_of(self.policy.decoder)) / 8 if self.bits else 0.0  # spread evenly over the layers
        return Storage(
            patches=weight("vision_encoder", "patch_embed.weight", [shape.patch_values]),
            blocks=weight("vision_encoder", "qkv.weight", [shape.vision_width]),
            projector=weight("projector", "fc1.weight", [inner]),
            attention=weight("decoder", "qkv_proj.weight", [shape.hidden]) + mixed,
            moe=weight("decoder", "gate", [shape.hidden, *shape.group_widths]) + mixed,
            head=weight("decoder", "lm_head.weight", [shape.hidden]),
            cache_token=self.cache_bytes(1),
        )

    def bytes_per_weight(self, part: str, parameter: str, widths: Sequence[int]) -> float:
        """Return the bytes of one weight, including its share of the block's scale; `widths` are the layer's input widths."""
        precision = self.policy.layer(part, parameter).for_widths(widths)
        gpu = self.target.name not in ("cpu", "portable")
        grouped = parameter.endswith("gate")
        head = parameter == "lm_head.weight"
        if self.target.tensorrt and (grouped or head) and precision.block_size not in KERNEL_BLOCKS:
            precision = Precision(16)
        if precision.bits > 8:
            return 2 if gpu else precision.bits / 8
        packed = (grouped and self.one_operator) or (
            head and self.target.tensorrt
        )  # with float32 scales on a GPU, float16 ones on a CPU
        scale = 2 if (gpu and not packed) or (self.target.operator_library and not gpu) else 4
        return precision.bits / 8 + scale / precision.block_size

    def embedding_bytes(self) -> float:
        """Return the bytes of the token embedding, which the host keeps."""
        stored = self.policy.decoder
        return self.shape.head_weights * (stored.bits / 8 if stored.bits > 8 else 1 + 4 / stored.block_size)

    def cache_bytes(self, tokens: int) -> int:
        """Return the bytes of a KV cache of `tokens` tokens."""
        value = CACHE_TYPES[self.target.cache_types[0]].bitwidth // 8
        return tokens * cache_token_bytes(self.shape.layers, self.shape.kv_heads, self.shape.head_dim, value)

    def memory_gb(self, tokens: int) -> float:
        """Return the GB that the device holds at a context of `tokens`; the embedding too where it shares the host's memory."""
        device = self.target.device
        shared = self.embedding_bytes() if device and device.unified else 0
        weights = sum(self.costs.weight_bytes().values())
        return (weights + self.cache_bytes(tokens) + shared) / 1e9 + WORKING_GB


def bound_seconds(cost: Cost, device: Device) -> float:
    """Return the roofline's lower bound, in seconds."""
    return max(cost.read_bytes / (device.bandwidth_gbs * 1e9), cost.operations / (device.tensor_tflops * 1e12))


def expected_seconds(cost: Cost, device: Device, arithmetic_share: float) -> float:
    """Return the seconds at the share of its bandwidth that the device reaches, and at `arithmetic_share` of its arithmetic."""
    memory = device.bandwidth_gbs * 1e9 * device.reached.bandwidth
    return max(cost.read_bytes / memory, cost.operations / (device.tensor_tflops * 1e12 * arithmetic_share))


def bound_by(cost: Cost, device: Device) -> str:
    """Return which of the two limits the time: `memory` or `arithmetic`."""
    memory = cost.read_bytes / device.bandwidth_gbs >= cost.operations / device.tensor_tflops / 1e3
    return "memory" if memory else "arithmetic"
