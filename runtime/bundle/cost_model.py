"""Count what a model's parts read and compute, from its shape and how its weights are stored: bytes and operations of each stage.

Weights and the KV cache count as read once for each pass of a part over its input; activations, which stay in the processor's caches
for the most part, do not count, nor do norms, biases and the router. A multiply-add is two operations. Estimates before a build, the
profiler's roofline and the benchmarks all take their figures from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from echovlm_edge.runtime.bundle.architectures import QWEN2_5_VL, QWEN2_VL, architecture_of, text_model
from echovlm_edge.runtime.bundle.manifest import PREFILL_CHUNK, Manifest, numpy_dtype

NEEDED = ("intermediate_size", "vision_config")  # keys without which a config says nothing of the model


@dataclass(frozen=True)
class Cost:
    """Bytes read and operations done."""

    read_bytes: float = 0.0
    operations: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.read_bytes + other.read_bytes, self.operations + other.operations)

    def __mul__(self, times: float) -> Cost:
        return Cost(self.read_bytes * times, self.operations * times)


@dataclass(frozen=True)
class ModelShape:
    """A model's widths and depths.

    Attributes:
        vision_width, vision_mlp, vision_depth, vision_heads: of the vision encoder; `vision_mlp` is its MLP's inner width.
        patch_values: numbers in a patch.
        merged: patches in a visual token.
        hidden, layers, heads, kv_heads, head_dim, vocabulary: of the decoder.
        dense, shared, expert: inner widths of DualPathMoE's groups: the dense and the shared one, which every token uses, and
            each routed expert.
        experts, chosen: routed experts of a layer, and how many of them a token uses; none in a decoder with the dense group alone.
        vision_matrices: products in an MLP of the vision encoder: 2, or 3 where it is a SwiGLU network.
        window: patches of a window of the vision encoder, 0 where it has none.
        whole_image: blocks of the vision encoder that attend to the whole image, where it has windows.
    """

    vision_width: int
    vision_mlp: int
    vision_depth: int
    vision_heads: int
    patch_values: int
    merged: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    dense: int
    shared: int
    expert: int
    experts: int
    chosen: int
    vision_matrices: int = 2
    window: int = 0
    whole_image: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ModelShape:
        """Read the shape from a checkpoint's config.json; a missing key has the published model's value."""
        vision: Mapping[str, Any] = config.get("vision_config") or {}
        text, architecture = text_model(config), architecture_of(config)
        windows, experts = architecture == QWEN2_5_VL, architecture not in (QWEN2_VL, QWEN2_5_VL)

        def number(name: str, published: int) -> int:
            return int(text.get(name, published))

        def of_experts(name: str, published: int) -> int:
            return number(name, published) if experts else 0

        def of_vision(names: str, published: int) -> int:
            return next((int(vision[name]) for name in names.split() if name in vision), published)

        width = of_vision("hidden_size" if windows else "embed_dim", 1280)
        hidden, heads = number("hidden_size", 3584), number("num_attention_heads", 28)
        # The published file has the names of an older Qwen2-VL: in_chans and spatial_patch_size.
        patch = of_vision("patch_size spatial_patch_size", 14)
        full = tuple(vision.get("fullatt_block_indexes", (7, 15, 23, 31)))
        return cls(
            vision_width=width,
            vision_mlp=of_vision("intermediate_size", 3420)
            if windows
            else int(width * float(vision.get("mlp_ratio", 4))),
            vision_depth=of_vision("depth", 32),
            vision_heads=of_vision("num_heads", 16),
            patch_values=of_vision("in_channels in_chans", 3) * patch**2 * of_vision("temporal_patch_size", 2),
            merged=of_vision("spatial_merge_size", 2) ** 2,
            hidden=hidden,
            layers=number("num_hidden_layers", 28),
            heads=heads,
            kv_heads=number("num_key_value_heads", 4),
            head_dim=int(text.get("head_dim") or hidden // max(heads, 1)),
            vocabulary=number("vocab_size", 152064),
            dense=number("intermediate_size", 18944),
            shared=of_experts("shared_expert_intermediate_size", 5632),
            expert=of_experts("moe_intermediate_size", 1408),
            experts=of_experts("num_experts", 4),
            chosen=of_experts("num_experts_per_tok", 2),
            vision_matrices=3 if windows else 2,
            window=(of_vision("window_size", 112) // patch) ** 2 if windows else 0,
            whole_image=len(full) if windows else 0,
        )

    @property
    def group_widths(self) -> tuple[int, ...]:
        """Return the inner widths of DualPathMoE's groups, in its order: dense, shared, experts."""
        return (self.dense, self.shared, *[self.expert] * self.experts) if self.experts else (self.dense,)

    @property
    def block_weights(self) -> int:
        """Return the weights of the linear layers in the vision encoder's blocks."""
        return self.vision_depth * self.vision_width * (4 * self.vision_width + self.vision_matrices * self.vision_mlp)

    def patches_attended(self, patches: float) -> float:
        """Return how many patches a patch of an image of `patches` attends to, over all blocks."""
        if not self.window:
            return self.vision_depth * patches
        return self.whole_image * patches + (self.vision_depth - self.whole_image) * min(self.window, patches)

    @property
    def patch_weights(self) -> int:
        """Return the weights of the vision encoder's first layer."""
        return self.patch_values * self.vision_width

    @property
    def projector_weights(self) -> int:
        """Return the weights of the projector's two layers."""
        inner = self.merged * self.vision_width
        return inner * (inner + self.hidden)

    @property
    def attention_weights(self) -> int:
        """Return the weights of one decoder layer's attention projections."""
        return self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)

    @property
    def always_weights(self) -> int:
        """Return the weights of one DualPathMoE that every token uses."""
        return 3 * self.hidden * (self.dense + self.shared)

    @property
    def expert_weights(self) -> int:
        """Return the weights of one routed expert."""
        return 3 * self.hidden * self.expert

    @property
    def head_weights(self) -> int:
        """Return the weights of the head; the token embedding has as many."""
        return self.hidden * self.vocabulary

    @property
    def moe_weights(self) -> int:
        """Return the weights of one DualPathMoE with all of its experts."""
        return self.always_weights + self.experts * self.expert_weights

    @property
    def decoder_weights(self) -> int:
        """Return the weights of all the decoder's linear layers."""
        return self.layers * (self.attention_weights + self.moe_weights) + self.head_weights


@dataclass(frozen=True)
class Storage:
    """Bytes of one stored weight of each kind, its share of a block's scale included; and of one token in the KV cache.

    Attributes:
        patches, blocks: of the vision encoder's first layer and of its blocks.
        projector: of the projector.
        attention, moe, head: of the decoder's attention projections, DualPathMoE and head.
        cache_token: bytes of one token's keys and values in all layers.
    """

    patches: float
    blocks: float
    projector: float
    attention: float
    moe: float
    head: float
    cache_token: int

    @classmethod
    def of_files(cls, shape: ModelShape, manifest: Manifest) -> Storage:
        """Spread the bytes of each part's files evenly over its weights, small parameters such as norms included."""
        vision, projector, decoder = (
            manifest.part(name).weight_bytes / weights
            for name, weights in (
                ("vision_encoder", shape.block_weights + shape.patch_weights),
                ("projector", shape.projector_weights),
                ("decoder", shape.decoder_weights),
            )
        )
        return cls(vision, vision, projector, decoder, decoder, decoder, bundle_cache_token_bytes(manifest))


@dataclass(frozen=True)
class CostModel:
    """A model as it is stored and run.

    Attributes:
        shape: the model's.
        storage: of its weights and its cache.
        every_expert: whether every token runs through every expert, as in standard operators.
        cache_capacity: tokens that attention reads under a mask whatever is filled; None where it reads only what is filled.
    """

    shape: ModelShape
    storage: Storage
    every_expert: bool = False
    cache_capacity: int | None = None

    @classmethod
    def of(cls, manifest: Manifest) -> CostModel | None:
        """Model a built bundle; None where its bundle.json does not hold the checkpoint's config."""
        config = manifest.source.config
        if not set(NEEDED) <= set(text_model(config)):
            return None
        shape = ModelShape.of(config)
        every_expert = manifest.operator_library is None  # DualPathMoE is spelled out
        return cls(shape, Storage.of_files(shape, manifest), every_expert)

    def weight_bytes(self) -> dict[str, float]:
        """Return the bytes of each part's weights, all of them, by the part's name."""
        shape, stored = self.shape, self.storage
        layer = shape.attention_weights * stored.attention + shape.moe_weights * stored.moe
        return {
            "vision_encoder": shape.block_weights * stored.blocks + shape.patch_weights * stored.patches,
            "projector": shape.projector_weights * stored.projector,
            "decoder": shape.layers * layer + shape.head_weights * stored.head,
        }

    def vision(self, tokens: int, frames: int = 1) -> Cost:
        """Count the vision encoder on `frames` frames of equal size, `tokens` visual tokens in all."""
        shape = self.shape
        patches = shape.merged * tokens / frames
        products = 2 * patches * (shape.block_weights + shape.patch_weights)
        attention = 4 * patches * shape.vision_width * shape.patches_attended(patches)
        return Cost(self.weight_bytes()["vision_encoder"], products + attention) * frames

    def projector(self, tokens: int, frames: int = 1) -> Cost:
        """Count the projector on the same frames."""
        operations = 2 * tokens * self.shape.projector_weights
        return Cost(self.weight_bytes()["projector"] * frames, operations)

    def prefill(self, tokens: int, cached: int) -> Cost:
        """Count the decoder on `tokens` tokens of a prompt after `cached` ones, a chunk at a time."""
        return _total(
            self.decoder_pass(min(PREFILL_CHUNK, tokens - start), cached + start)
            for start in range(0, tokens, PREFILL_CHUNK)
        )

    def decode(self, new_tokens: int, cached: int) -> Cost:
        """Count all new tokens but the first, which prefill's logits give, one at a time after `cached` tokens."""
        return _total(self.decoder_pass(1, cached + token) for token in range(new_tokens - 1))

    def decoder_pass(self, tokens: int, cached: int) -> Cost:
        """Count one run of the decoder: `tokens` new tokens after `cached` ones, logits of the last."""
        shape, stored = self.shape, self.storage
        used = shape.always_weights + self._experts_of_a_token * shape.expert_weights
        products = 2 * tokens * (shape.attention_weights + used)
        # A token attends to itself and to all before it: over the chunk, to the middle one's number on average.
        attended = cached + (tokens + 1) / 2 if self.cache_capacity is None else self.cache_capacity
        attention = 4 * tokens * attended * shape.heads * shape.head_dim
        layer = shape.attention_weights * stored.attention + self.moe_weights_read(tokens) * stored.moe
        read_tokens = cached + tokens if self.cache_capacity is None else self.cache_capacity
        return Cost(
            shape.layers * layer + shape.head_weights * stored.head + stored.cache_token * read_tokens,
            shape.layers * (products + attention) + 2 * shape.head_weights,
        )

    def moe_weights_read(self, tokens: int) -> float:
        """Return the weights of one DualPathMoE that a pass over `tokens` tokens reads, where experts are chosen evenly.

        Each expert is left out by one token with probability 1 - chosen / experts, and by all of them with that to their number.
        """
        experts = self.shape.experts
        if not experts:
            return self.shape.always_weights
        touched = experts * (1 - (1 - self._experts_of_a_token / experts) ** tokens)
        return self.shape.always_weights + touched * self.shape.expert_weights

    @property
    def _experts_of_a_token(self) -> int:
        return self.shape.experts if self.every_expert else self.shape.chosen


def cache_token_bytes(layers: int, kv_heads: int, head_dim: int, item_bytes: int) -> int:
    """Return the bytes of one token's keys and values, in all layers."""
    return 2 * layers * kv_heads * head_dim * item_bytes


def bundle_cache_token_bytes(manifest: Manifest) -> int:
    """Return the bytes of one token's keys and values in a bundle; an int8 cache's scales are constants of its graph."""
    model, size = manifest.model, numpy_dtype(manifest.cache_tensor.dtype).itemsize
    return cache_token_bytes(model.num_layers, model.num_kv_heads, model.head_dim, size)


def _total(costs: Iterable[Cost]) -> Cost:
    return sum(costs, Cost())
