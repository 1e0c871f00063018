"""Read a published config.json into frozen dataclasses: old and new key names and absent defaults included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from echovlm_edge.export.families import echovlm, qwen2_5_vl, qwen2_vl
from echovlm_edge.export.families.interface import Family
from echovlm_edge.export.families.shape import DecoderConfig, VisionConfig
from echovlm_edge.runtime.bundle.architectures import ECHOVLM as ARCHITECTURE
from echovlm_edge.runtime.bundle.architectures import architecture_of, text_model
from echovlm_edge.runtime.contracts.errors import NotPossibleHere

__all__ = ["ARCHITECTURE", "FAMILIES", "DecoderConfig", "EchoVLMConfig", "VisionConfig"]

FAMILIES = {family.architecture: family for family in (echovlm.FAMILY, qwen2_5_vl.FAMILY, qwen2_vl.FAMILY)}


@dataclass(frozen=True)
class EchoVLMConfig:
    """A checkpoint's config: EchoVLM's, or that of a Qwen-VL model that was trained for ultrasound."""

    family: Family
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
        architecture = architecture_of(config)
        family = FAMILIES.get(architecture)
        if family is None:
            raise NotPossibleHere(
                f"{where} describes {architecture}, and not one of {', '.join(FAMILIES)}: give a checkpoint of EchoVLM."
            )
        text = text_model(config)
        if text.get("use_sliding_window"):
            raise NotPossibleHere(f"{where} asks for use_sliding_window, which EchoVLM does not use: set it to false.")
        if text.get("hidden_act", "silu") != "silu":
            raise NotPossibleHere(f"{where} has hidden_act {text['hidden_act']!r}; DualPathMoE is SwiGLU: 'silu'.")
        try:
            parsed = cls(
                family=family,
                vision=family.read_vision(config.get("vision_config") or {}),
                decoder=family.read_decoder(text),
                image_token_id=int(config["image_token_id"]),
                eos_token_ids=_token_ids(text.get("eos_token_id")),
            )
        except KeyError as missing:
            raise NotPossibleHere(f"{where} lacks the key {missing}: is it the checkpoint's config.json?") from None
        except (TypeError, ValueError, AttributeError) as wrong:
            raise NotPossibleHere(
                f"{where} has a value that cannot be used ({wrong}): copy the published file again."
            ) from None
        parsed._check(where)
        return parsed

    def _check(self, where: str) -> None:
        vision, decoder = self.vision, self.decoder
        rules = {
            f"the projector's width {vision.hidden_size} in vision_config must equal hidden_size {decoder.hidden_size}": (
                vision.hidden_size == decoder.hidden_size
            ),
            f"the vision encoder's width {vision.embed_dim} must be a multiple of 4 x num_heads {vision.num_heads}": (
                vision.embed_dim % (4 * vision.num_heads) == 0
            ),
            f"hidden_act {vision.hidden_act!r} of vision_config must be {self.family.hidden_act!r}": (
                vision.hidden_act == self.family.hidden_act
            ),
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


def _token_ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(int(token) for token in value) if isinstance(value, list) else (int(value),)
