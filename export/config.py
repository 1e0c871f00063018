"""Read the published config.json into frozen dataclasses: old key names and absent defaults included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from echovlm_edge.runtime.contracts.errors import NotPossibleHere

ARCHITECTURE = "Qwen2VLMOEForConditionalGeneration"

# The published file says in_chans and spatial_patch_size where Qwen2-VL's config class says in_channels and patch_size.
_OLD_VISION_KEYS = {"in_chans": "in_channels", "spatial_patch_size": "patch_size"}


@dataclass(frozen=True)
class VisionConfig:
    """The vision encoder and projector; the defaults are Qwen2-VL's, which the published file leaves out."""

    depth: int = 32
    embed_dim: int = 1280
    hidden_size: int = 3584  # the projector's output: the decoder's width
    hidden_act: str = "quick_gelu"
    mlp_ratio: float = 4
    num_heads: int = 16
    in_channels: int = 3
    patch_size: int = 14
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2

    @property
    def patch_values(self) -> int:
        """Return the numbers in one flattened patch: channels x time x height x width."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def head_dim(self) -> int:
        """Return the width of one attention head."""
        return self.embed_dim // self.num_heads

    @property
    def mlp_dim(self) -> int:
        """Return the inner width of a block's MLP."""
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def merged_dim(self) -> int:
        """Return the width of one merged patch: the projector's inner width."""
        return self.embed_dim * self.spatial_merge_size**2


@dataclass(frozen=True)
class DecoderConfig:
    """The decoder and its DualPathMoE blocks."""

    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    shared_expert_intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    num_experts: int
    num_experts_per_tok: int
    vocab_size: int
    mrope_section: tuple[int, int, int]
    head_dim: int
    norm_topk_prob: bool = False
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 32768

    @property
    def group_widths(self) -> tuple[int, ...]:
        """Return the inner widths of DualPathMoE's groups, in its order: dense, shared, experts."""
        experts = (self.moe_intermediate_size,) * self.num_experts
        return (self.intermediate_size, self.shared_expert_intermediate_size, *experts)


@dataclass(frozen=True)
class EchoVLMConfig:
    """An EchoVLM checkpoint's config."""

    vision: VisionConfig
    decoder: DecoderConfig
    image_token_id: int
    eos_token_ids: tuple[int, ...]

    @classmethod
    def from_json(cls, config: Mapping[str, Any], where: str) -> EchoVLMConfig:
        """Read a parsed config.json; `where` names the file in errors.

        Raises:
            NotPossibleHere: another architecture, a missing key, or widths that do not fit together.
        """
        architecture = (config.get("architectures") or ["(none)"])[0]
        if architecture != ARCHITECTURE:
            raise NotPossibleHere(f"{where} describes {architecture}, not {ARCHITECTURE}: give an EchoVLM checkpoint.")
        if config.get("use_sliding_window"):
            raise NotPossibleHere(f"{where} asks for use_sliding_window, which EchoVLM does not use: set it to false.")
        if config.get("hidden_act", "silu") != "silu":
            raise NotPossibleHere(f"{where} has hidden_act {config['hidden_act']!r}; DualPathMoE is SwiGLU: 'silu'.")
        try:
            parsed = cls(
                vision=_vision_config(config.get("vision_config") or {}),
                decoder=_decoder_config(config),
                image_token_id=int(config["image_token_id"]),
                eos_token_ids=_token_ids(config.get("eos_token_id")),
            )
        except KeyError as missing:
            raise NotPossibleHere(f"{where} lacks the key {missing}: is it EchoVLM's config.json?") from None
        except (TypeError, ValueError) as wrong:
            raise NotPossibleHere(f"{where} has a value of the wrong kind ({wrong}).") from None
        parsed._check(where)
        return parsed

    def _check(self, where: str) -> None:
        vision, decoder = self.vision, self.decoder
        rules = {
            f"vision_config.hidden_size {vision.hidden_size} must equal hidden_size {decoder.hidden_size}": (
                vision.hidden_size == decoder.hidden_size
            ),
            f"embed_dim {vision.embed_dim} must be a multiple of 4 x num_heads {vision.num_heads}": (
                vision.embed_dim % (4 * vision.num_heads) == 0
            ),
            f"hidden_act {vision.hidden_act!r} of vision_config must be 'quick_gelu'": vision.hidden_act
            == "quick_gelu",
            f"mrope_section {list(decoder.mrope_section)} must sum to half of head_dim {decoder.head_dim}": (
                2 * sum(decoder.mrope_section) == decoder.head_dim
            ),
            f"num_attention_heads {decoder.num_attention_heads} must be a multiple of num_key_value_heads": (
                decoder.num_attention_heads % decoder.num_key_value_heads == 0
            ),
            f"num_experts_per_tok {decoder.num_experts_per_tok} must be between 1 and num_experts": (
                1 <= decoder.num_experts_per_tok <= decoder.num_experts
            ),
        }
        for rule, holds in rules.items():
            if not holds:
                raise NotPossibleHere(f"{where}: {rule}.")


def _vision_config(config: Mapping[str, Any]) -> VisionConfig:
    renamed = {_OLD_VISION_KEYS.get(key, key): value for key, value in config.items()}
    return VisionConfig(**{key: value for key, value in renamed.items() if key in VisionConfig.__dataclass_fields__})


def _decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    known = {key: value for key, value in config.items() if key in DecoderConfig.__dataclass_fields__}
    rope = config.get("rope_scaling") or {}
    known["mrope_section"] = tuple(int(width) for width in rope["mrope_section"])
    known.setdefault("head_dim", int(config["hidden_size"]) // int(config["num_attention_heads"]))
    for field in fields(DecoderConfig):
        if field.default is MISSING and field.name not in known:
            raise KeyError(field.name)
    return DecoderConfig(**known)


def _token_ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(int(token) for token in value) if isinstance(value, list) else (int(value),)
