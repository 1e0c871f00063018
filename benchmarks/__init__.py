"""Measurements of the engine, of its parts and of the service."""

import echovlm_edge as echovlm_edge  # before ONNX Runtime, whose telemetry it switches off
