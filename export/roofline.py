"""Compute what a bundle's stages read and calculate, from the model's shape, and the least time that a device needs for it.

The roofline of Williams, Waterman & Patterson 2009: a stage takes as long as its bytes at the memory's bandwidth, or as its
operations at the arithmetic's rate, whichever is longer. Weights, the KV cache and attention are counted; activations, which
stay in caches for the most part, are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from echovlm_edge.export.config import EchoVLMConfig
from echovlm_edge.export.devices import Device
from echovlm_edge.export.engines.tensorrt_rules import KERNEL_BLOCKS
from echovlm_edge.export.quantize import CACHE_TYPES, Precision, PrecisionPolicy
from echovlm_edge.export.targets import Target
from echovlm_edge.runtime.backends import PREFILL_CHUNK
from echovlm_edge.runtime.backends.bundle_memory import cache_token_bytes

WORKING_GB = 0.6  # the device's context, kernels and activations: an allowance


@dataclass(frozen=True)
class Workload:
    """One request: frames of `patches` patches, a text prompt, tokens that are cached already, tokens to write.

    A case is about seven frames: the model was trained on 208,941 cases with 1.47 million key frames.
    """

    name: str
    frames: int
    text_tokens: int
    cached_tokens: int
    new_tokens: int
    patches: int = 1564  # a frame of 640 x 480

    @property
    def prompt_tokens(self) -> int:
        """Tokens that prefill works on."""
        return self.frames * self.patches // 4 + self.text_tokens


W1 = Workload("W1", 1, 60, 0, 160)
W7 = Workload("W7", 7, 60, 0, 240)
Q = Workload("Q", 0, 30, W7.prompt_tokens + W7.new_tokens, 40)
WORKLOADS = (W1, W7, Q)


@dataclass(frozen=True)
class Cost:
    """Bytes read and operations done (a multiply-add is two)."""

    read_bytes: float
    operations: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.read_bytes + other.read_bytes, self.operations + other.operations)

    def seconds(self, device: Device) -> float:
        """Return the roofline's lower bound, in seconds."""
        return max(self.read_bytes / (device.bandwidth_gbs * 1e9), self.operations / (device.tensor_tflops * 1e12))

    def expected_seconds(self, device: Device, arithmetic_share: float) -> float:
        """Return the seconds at the share of its bandwidth that the device reaches, and at this share of its arithmetic."""
        memory = device.bandwidth_gbs * 1e9 * device.reached.bandwidth
        return max(self.read_bytes / memory, self.operations / (device.tensor_tflops * 1e12 * arithmetic_share))

    def bound(self, device: Device) -> str:
        """Return which of the two limits the time."""
        memory = self.read_bytes / device.bandwidth_gbs >= self.operations / device.tensor_tflops / 1e3
        return "memory" if memory else "arithmetic"


@dataclass(frozen=True)
class Roofline:
    """A model in one precision for one target.

    Attributes:
        config: the model's shape.
        target: how its weights are stored, and whether attention works through the whole cache.
        policy: the precision of each layer.
        max_sequence: the cache's capacity in tokens.
    """

    config: EchoVLMConfig
    target: Target
    policy: PrecisionPolicy
    max_sequence: int

    @property
    def block_weights(self) -> int:
        """Count the weights of the linear layers in the vision encoder's blocks."""
        vision = self.config.vision
        return vision.depth * vision.embed_dim * (4 * vision.embed_dim + 2 * vision.mlp_dim)

    @property
    def patch_weights(self) -> int:
        """Count the weights of the vision encoder's first layer."""
        return self.config.vision.patch_values * self.config.vision.embed_dim

    @property
    def projector_weights(self) -> int:
        """Count the weights of the projector's two layers."""
        vision = self.config.vision
        return vision.merged_dim * (vision.merged_dim + vision.hidden_size)

    @property
    def attention_weights(self) -> int:
        """Count the weights of one decoder layer's attention projections."""
        decoder = self.config.decoder
        heads = 2 * decoder.num_attention_heads + 2 * decoder.num_key_value_heads
        return decoder.hidden_size * decoder.head_dim * heads

    def group_weights(self, tokens: int, distinct: bool) -> float:
        """Count the weights of one DualPathMoE that `tokens` tokens use in total.

        With `distinct`, each weight counts once, where experts are chosen evenly. Where standard operators compute the block, every
        token uses every expert.
        """
        decoder = self.config.decoder
        chosen = decoder.num_experts_per_tok if self.target.operator_library else decoder.num_experts
        touched = decoder.num_experts * (1 - (1 - chosen / decoder.num_experts) ** tokens)
        experts, times = (touched, 1) if distinct else (chosen * tokens, tokens)
        always = decoder.intermediate_size + decoder.shared_expert_intermediate_size
        return 3 * decoder.hidden_size * (always * times + decoder.moe_intermediate_size * experts)

    @property
    def head_weights(self) -> int:
        """Count the weights of the head."""
        return self.config.decoder.hidden_size * self.config.decoder.vocab_size

    def bytes_per_weight(self, part: str, parameter: str, widths: Sequence[int]) -> float:
        """What a weight takes, its share of the block's scale included."""
        precision = self.policy.layer(part, parameter).for_widths(widths)
        gpu = self.target.name not in ("cpu", "portable")
        grouped = parameter.endswith("gate")
        if self.target.tensorrt and (
            parameter == "lm_head.weight" or (grouped and precision.block_size not in KERNEL_BLOCKS)
        ):
            precision = Precision(16)
        if precision.bits > 8:
            return 2 if gpu else precision.bits / 8
        gpu_floats = gpu and not (self.target.tensorrt and grouped)
        scale = 2 if self.target.operator_library or gpu_floats else 4
        return precision.bits / 8 + scale / precision.block_size

    def weight_bytes(self) -> dict[str, float]:
        """The weights of each part, all of them."""
        decoder, vision = self.config.decoder, self.config.vision
        groups = self.group_weights(10**6, distinct=True) * self._moe_bytes
        layer = self.attention_weights * self._linear_bytes + groups
        return {
            "vision encoder": self.block_weights
            * self.bytes_per_weight("vision_encoder", "qkv.weight", [vision.embed_dim])
            + self.patch_weights * self.bytes_per_weight("vision_encoder", "patch_embed.weight", [vision.patch_values]),
            "projector": self.projector_weights * self.bytes_per_weight("projector", "fc1.weight", [vision.merged_dim]),
            "decoder": decoder.num_hidden_layers * layer + self.head_weights * self._head_bytes,
        }

    def embedding_bytes(self) -> float:
        """The token embedding, which the host keeps."""
        stored = self.policy.decoder
        return self.head_weights * (stored.bits / 8 if stored.bits > 8 else 1 + 4 / stored.block_size)

    def cache_bytes(self, tokens: int) -> int:
        """A KV cache of `tokens` tokens."""
        decoder = self.config.decoder
        value = CACHE_TYPES[self.target.cache_types[0]].bitwidth // 8
        return tokens * cache_token_bytes(
            decoder.num_hidden_layers, decoder.num_key_value_heads, decoder.head_dim, value
        )

    def memory_gb(self, tokens: int) -> float:
        """All that the device holds at a context of `tokens`; the embedding too where it shares the host's memory."""
        device = self.target.device
        shared = self.embedding_bytes() if device and device.unified else 0
        return (sum(self.weight_bytes().values()) + self.cache_bytes(tokens) + shared) / 1e9 + WORKING_GB

    def image(self, patches: int) -> Cost:
        """Vision encoder and projector on one frame."""
        vision, weights = self.config.vision, self.weight_bytes()
        attention = 4 * patches**2 * vision.embed_dim * vision.depth
        operations = (
            2 * patches * (self.block_weights + self.patch_weights)
            + attention
            + 2 * patches // 4 * self.projector_weights
        )
        return Cost(weights["vision encoder"] + weights["projector"], operations)

    def prefill(self, tokens: int, cached: int) -> Cost:
        """The decoder on a prompt of `tokens` tokens after `cached` ones, a chunk at a time."""
        total = Cost(0, 0)
        for start in range(0, tokens, PREFILL_CHUNK):
            chunk = min(PREFILL_CHUNK, tokens - start)
            total += self.decoder_pass(chunk, cached + start)
        return total

    def decoder_pass(self, tokens: int, cached: int) -> Cost:
        """One run of the decoder: `tokens` new tokens after `cached` ones, logits of the last."""
        decoder = self.config.decoder
        seen = cached + (tokens + 1) / 2 if self._reads_filled_cache else float(self.max_sequence)
        read_cache = self.cache_bytes(1) * (cached + tokens if self._reads_filled_cache else self.max_sequence)
        attention = 4 * tokens * seen * decoder.num_attention_heads * decoder.head_dim
        products = 2 * (tokens * self.attention_weights + self.group_weights(tokens, distinct=False))
        layer_bytes = (
            self.attention_weights * self._linear_bytes + self.group_weights(tokens, distinct=True) * self._moe_bytes
        )
        return Cost(
            decoder.num_hidden_layers * layer_bytes + self.head_weights * self._head_bytes + read_cache,
            decoder.num_hidden_layers * (products + attention) + 2 * self.head_weights,
        )

    def write(self, workload: Workload) -> Cost:
        """All of a workload's new tokens but the first, one at a time."""
        total = Cost(0, 0)
        for token in range(1, workload.new_tokens):
            total += self.decoder_pass(1, workload.cached_tokens + workload.prompt_tokens + token - 1)
        return total

    @property
    def _reads_filled_cache(self) -> bool:
        """GroupQueryAttention reads what is filled; Attention under a mask, all of the cache."""
        return self.target.name in ("cpu", "cuda")

    @property
    def _linear_bytes(self) -> float:
        return self.bytes_per_weight("decoder", "qkv_proj.weight", [self.config.decoder.hidden_size])

    @property
    def _moe_bytes(self) -> float:
        decoder = self.config.decoder
        return self.bytes_per_weight("decoder", "gate", [decoder.hidden_size, *decoder.group_widths])

    @property
    def _head_bytes(self) -> float:
        return self.bytes_per_weight("decoder", "lm_head.weight", [self.config.decoder.hidden_size])
