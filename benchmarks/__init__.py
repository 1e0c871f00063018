"""Measurements of the engine, of its parts and of the service."""

from contextlib import suppress

with suppress(ModuleNotFoundError):  # a peer's environment has none of ours
    import echovlm_edge as echovlm_edge  # before ONNX Runtime, whose telemetry it switches off
