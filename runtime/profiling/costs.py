"""What each stage has to read and compute, counted from the model's shape in bundle.json: the points of the roofline.

Williams, Waterman & Patterson 2009. Weights and the KV cache count as read once for each pass of a part over its input, at the
size that their files have; activations, which caches hold for the most part, do not count. A multiply-add is two operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from echovlm_edge.runtime.backends import PREFILL_CHUNK
from echovlm_edge.runtime.backends.bundle_memory import bundle_cache_token_bytes
from echovlm_edge.runtime.bundle.manifest import Bundle


@dataclass(frozen=True)
class Cost:
    """Bytes read and operations done."""

    read_bytes: float
    operations: float


@dataclass(frozen=True)
class StageCosts:
    """A bundle's stages."""

    config: Mapping[str, Any]  # the checkpoint's config.json
    vision_bytes: int
    projector_bytes: int
    decoder_bytes: int
    cache_token_bytes: int  # of one token's keys and values

    @classmethod
    def of(cls, bundle: Bundle) -> StageCosts | None:
        """None where bundle.json does not hold the checkpoint's config."""
        manifest = bundle.manifest
        if not {"intermediate_size", "vision_config", "num_experts"} <= set(manifest.source.config):
            return None
        # An ONNX graph lies before its weights; an engine has them in itself.
        sizes = {part.name: sum(file.bytes for file in part.files[1:] or part.files) for part in manifest.parts}
        return cls(
            manifest.source.config,
            sizes["vision_encoder"],
            sizes["projector"],
            sizes["decoder"],
            bundle_cache_token_bytes(manifest),
        )

    def vision(self, image_tokens: int, frames: int) -> Cost:
        """The vision encoder on `frames` frames of `image_tokens` merged patches in all."""
        vision = self.config["vision_config"]
        width, depth = int(vision.get("embed_dim", 1280)), int(vision.get("depth", 32))
        weights = depth * width * width * (4 + 2 * float(vision.get("mlp_ratio", 4))) + 1176 * width
        patches = 4 * image_tokens
        attention = 4 * (patches / frames) ** 2 * frames * width * depth
        return Cost(self.vision_bytes * frames, 2 * patches * weights + attention)

    def projector(self, image_tokens: int, frames: int) -> Cost:
        """The projector on the same."""
        merged = 4 * int(self.config["vision_config"].get("embed_dim", 1280))
        weights = merged * (merged + int(self.config["hidden_size"]))
        return Cost(self.projector_bytes * frames, 2 * image_tokens * weights)

    def prefill(self, tokens: int, cached: int) -> Cost:
        """A prompt of `tokens` tokens after `cached` ones, a chunk at a time."""
        read = operations = 0.0
        for start in range(0, tokens, PREFILL_CHUNK):
            cost = self._pass(min(PREFILL_CHUNK, tokens - start), cached + start)
            read, operations = read + cost.read_bytes, operations + cost.operations
        return Cost(read, operations)

    def decode(self, new_tokens: int, cached: int) -> Cost:
        """All new tokens but the first, which prefill's logits give, one at a time after `cached` ones."""
        read = operations = 0.0
        for token in range(new_tokens - 1):
            cost = self._pass(1, cached + token)
            read, operations = read + cost.read_bytes, operations + cost.operations
        return Cost(read, operations)

    def _pass(self, tokens: int, cached: int) -> Cost:
        number = {key: int(value) for key, value in self.config.items() if isinstance(value, int)}
        hidden, layers, heads = (number[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
        head = number.get("head_dim", hidden // heads)
        experts, chosen = number["num_experts"], number["num_experts_per_tok"]
        expert = 3 * hidden * number["moe_intermediate_size"]
        always = 3 * hidden * (number["intermediate_size"] + number["shared_expert_intermediate_size"])
        attention = hidden * head * (2 * heads + 2 * number["num_key_value_heads"])
        vocabulary = hidden * number["vocab_size"]
        # Experts that no token of the pass chose are not read: an even choice leaves this many out.
        skipped = experts * (1 - chosen / experts) ** tokens
        whole = layers * (attention + always + experts * expert) + vocabulary
        read = self.decoder_bytes * (whole - layers * skipped * expert) / whole
        products = 2 * tokens * layers * (attention + always + chosen * expert) + 2 * vocabulary
        scores = 4 * tokens * (cached + (tokens + 1) / 2) * heads * head * layers
        return Cost(read + self.cache_token_bytes * (cached + tokens), products + scores)
