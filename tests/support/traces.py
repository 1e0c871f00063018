"""Trace each shape of model once a session: a trace takes most of a small build's time, and depends on the shape alone."""

from __future__ import annotations

import onnx_ir as ir

from echovlm_edge.export.graph.tracing import traced_parts
from echovlm_edge.export.source.config import EchoVLMConfig

_traced: dict[EchoVLMConfig, dict[str, ir.Model]] = {}


def shared_parts(config: EchoVLMConfig) -> dict[str, ir.Model]:
    """Return copies of a shape's traced parts: who lowers them changes them."""
    if config not in _traced:
        _traced[config] = traced_parts(config)
    return {name: model.clone() for name, model in _traced[config].items()}
