"""Set the scales of an int8 KV cache, from the largest keys and values that the PyTorch model has on sample prompts.

A key channel and its rotary partner turn into each other as positions move on, so that both take the pair's largest length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from echovlm_edge.export.parity.parity import Sample, read_prompt
from echovlm_edge.export.parity.reference import TorchBackend
from echovlm_edge.runtime.backends import Floats
from echovlm_edge.runtime.bundle.manifest import ModelSpec
from echovlm_edge.runtime.prompting.prompt import PromptBuilder

LEVELS = 127
HEADROOM = 1.5  # over what the samples show: other images have other extremes, and what is over saturates


def give_cache_scales(
    graph: ir.Graph, reference: TorchBackend, prompts: PromptBuilder, spec: ModelSpec, images: Sequence[Sample]
) -> None:
    """Set the scales of a lowered decoder's int8 caches: float32 [kv_heads * head_dim] per layer."""
    keys, values = reference.caches([read_prompt(reference, prompts, spec, image) for image in images])
    for layer, (layer_keys, layer_values) in enumerate(zip(keys, values, strict=True)):
        for name, peaks in (("keys", _pair_peaks(layer_keys)), ("values", np.abs(layer_values).max(0))):
            scale = np.maximum(HEADROOM * peaks.reshape(-1) / LEVELS, np.finfo(np.float32).tiny).astype(np.float32)
            initializer = graph.initializers[f"{name}.{layer}.scale"]
            initializer.const_value = ir.tensor(scale, name=initializer.name)


def _pair_peaks(keys: Floats) -> Floats:
    """Reduce keys [tokens, kv_heads, head_dim] to the largest length of each rotary pair, [kv_heads, head_dim]."""
    first, second = np.split(keys, 2, axis=-1)
    length = np.hypot(first, second).max(0)
    return np.concatenate([length, length], axis=-1)
