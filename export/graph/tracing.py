"""Trace PyTorch parts to ONNX graphs of named operators: shapes only, as the weights are read later, one at a time.

In a traced graph every parameter is one more input, of the parameter's name; lowering stores it the way its target wants.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnxscript.optimizer import optimize_ir
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim

from echovlm_edge.export.model import weights
from echovlm_edge.export.model.decoder import Decoder
from echovlm_edge.export.model.projector import Projector
from echovlm_edge.export.source.config import EchoVLMConfig

OPSET = 24


def traced_parts(config: EchoVLMConfig) -> dict[str, ir.Model]:
    """Trace each part, by its name, without its weights."""
    parts = weights.parts_without_values(config)
    return {
        "vision_encoder": trace_vision_encoder(config, parts.vision_encoder),
        "projector": trace_projector(config, parts.projector),
        "decoder": trace_decoder(config, parts.decoder),
    }


def trace_vision_encoder(config: EchoVLMConfig, part: nn.Module) -> ir.Model:
    """Trace the vision encoder: patches [patches, values], cos and sin [patches, head_dim / 2] to features [patches, embed_dim].

    One with windows takes their order and its inverse too, int64 [patches], and where they begin, int64 [windows + 1].
    """
    vision, patches = config.vision, 16
    cos, sin = (torch.empty(patches, vision.head_dim // 2) for _ in range(2))
    inputs = {"patches": torch.empty(patches, vision.patch_values), "cos": cos, "sin": sin}
    if vision.window:
        order = torch.empty(patches, dtype=torch.int64)
        inputs |= {"window_order": order, "merge_order": order.clone()}
    count = Dim("patch_count", min=1)
    shapes = {name: {0: count} for name in inputs}
    if vision.window:
        inputs["window_offsets"] = torch.empty(3, dtype=torch.int64)
        shapes["window_offsets"] = {0: Dim("window_bounds", min=2)}
    return _trace(part, inputs, shapes, ["features"])


def trace_projector(config: EchoVLMConfig, part: Projector) -> ir.Model:
    """Trace the projector: input features [patches, embed_dim], patches a multiple of 4; output embeddings [patches / 4, hidden_size]."""
    merged = Dim("merged", min=1)
    square = config.vision.spatial_merge_size**2
    features = torch.empty(4 * square, config.vision.embed_dim)
    return _trace(part, {"features": features}, {"features": {0: square * merged}}, ["embeddings"])


def trace_decoder(config: EchoVLMConfig, part: Decoder) -> ir.Model:
    """Trace the decoder, with the inputs and outputs of `Decoder.forward`; the caches are keys.0, values.0, … and present_keys.0, ….

    Varying dimensions: batch, sequence (new tokens), context (the caches' capacity), rows (logits asked for).
    """
    decoder = config.decoder
    batch, sequence, context, rows = 2, 3, 32, 5
    layers = range(decoder.num_hidden_layers)
    cache = (batch, decoder.num_key_value_heads, context, decoder.head_dim)
    keys, values = ([torch.empty(cache) for _ in layers] for _ in range(2))
    cos, sin = (torch.empty(batch, sequence, decoder.head_dim // 2) for _ in range(2))
    inputs = {
        "embeddings": torch.empty(batch, sequence, decoder.hidden_size),
        "cos": cos,
        "sin": sin,
        "past": torch.empty(batch, dtype=torch.int64),
        "logit_rows": torch.empty(rows, dtype=torch.int64),
        "keys": keys,
        "values": values,
    }
    batches, tokens, contexts = Dim("batch", min=1), Dim("sequence", min=1), Dim("context", min=1)
    per_token = {0: batches, 1: tokens}
    caches = [{0: batches, 2: contexts} for _ in layers]
    shapes = {
        **dict.fromkeys(("embeddings", "cos", "sin"), per_token),
        **{"past": {0: batches}, "logit_rows": {0: Dim("rows", min=1)}, "keys": caches, "values": caches},
    }
    outputs = ["logits", *(f"present_{name}.{layer}" for name in ("keys", "values") for layer in layers)]
    return _trace(part, inputs, shapes, outputs)


def _trace(part: nn.Module, inputs: Mapping[str, Any], dynamic: Mapping[str, Any], outputs: Sequence[str]) -> ir.Model:
    names = [name for key, value in inputs.items() for name in _names(key, value)]
    with _quiet(), FakeTensorMode(allow_non_fake_inputs=True):
        part.to_empty(device="cpu")
        program = torch.onnx.export(
            part,
            kwargs=dict(inputs),
            dynamic_shapes=dict(dynamic),
            input_names=names,
            output_names=list(outputs),
            opset_version=OPSET,
            dynamo=True,
            optimize=False,  # below, once the weights are out of the way
            verbose=False,
        )
        assert program is not None
        _weights_to_inputs(program.model.graph)
        optimize_ir(program.model)
    return program.model


def _weights_to_inputs(graph: ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        if "." in name:  # a parameter's path; the exporter's own constants have none
            del graph.initializers[name]
            value.const_value = None
            graph.inputs.append(value)


def _names(key: str, value: Any) -> list[str]:
    return [f"{key}.{index}" for index in range(len(value))] if isinstance(value, list) else [key]


@contextlib.contextmanager
def _quiet() -> Any:
    # The exporter reports its steps on stdout and warns of things that are its own; the build has its own progress bar.
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
    logging.getLogger("torch.onnx").setLevel(level)
