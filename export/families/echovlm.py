"""EchoVLM: Qwen2-VL, in whose decoder a mixture of experts stands beside each layer's SwiGLU network (DualPathMoE)."""

from __future__ import annotations

from dataclasses import replace

from echovlm_edge.export.families import qwen2_vl
from echovlm_edge.export.families.interface import Shapes, decoder_config, linear, swiglu
from echovlm_edge.export.families.shape import DecoderConfig
from echovlm_edge.runtime.bundle.architectures import ECHOVLM


def mixture_tensors(decoder: DecoderConfig) -> Shapes:
    """List the tensors of a layer's two paths, and of what weighs them."""
    width, inner = decoder.hidden_size, decoder.moe_intermediate_size
    shapes = qwen2_vl.dense_tensors(decoder) | linear("moe.gate", decoder.num_experts, width, bias=False)
    for expert in range(decoder.num_experts):
        shapes |= swiglu(f"moe.experts.{expert}", width, inner)
    shapes |= swiglu("moe.shared_expert", width, decoder.shared_expert_intermediate_size)
    return shapes | linear("moe.shared_expert_gate", 1, width, bias=False) | linear("coefficient", 2, width)


FAMILY = replace(
    qwen2_vl.FAMILY,
    architecture=ECHOVLM,
    read_decoder=decoder_config,
    feed_forward_tensors=mixture_tensors,
)
