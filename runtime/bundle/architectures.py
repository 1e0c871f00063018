"""The published architectures, by their names in config.json, and where a config.json has the text model's keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ECHOVLM = "Qwen2VLMOEForConditionalGeneration"
QWEN2_VL = "Qwen2VLForConditionalGeneration"
QWEN2_5_VL = "Qwen2_5_VLForConditionalGeneration"


def architecture_of(config: Mapping[str, Any]) -> str:
    """Return a config's first architecture, or "(none)"."""
    return str((config.get("architectures") or ["(none)"])[0])


def text_model(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the text model's keys, which newer files nest under `text_config`; whether embeddings are tied stands beside it."""
    nested = config.get("text_config")
    if not isinstance(nested, Mapping):
        return config
    tied = {"tie_word_embeddings": config["tie_word_embeddings"]} if "tie_word_embeddings" in config else {}
    return {**config, **nested, **tied}
