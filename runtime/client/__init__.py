"""The Python client and its command.

`from echovlm_edge import ReportClient` is the way in. The names that this module itself had are kept for one minor version.
"""

from __future__ import annotations

import os
import warnings
from importlib import import_module
from typing import Any

# gRPC's own log lines say in twenty raw ones what our error says in a sentence; read once, when grpc is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

_OLD = {
    "ReportClient": ("echovlm_edge.runtime.client.wire.connection", "Connection"),
    "ReportRequest": ("echovlm_edge.runtime.client.wire.requests", "ReportRequest"),
    "Credentials": ("echovlm_edge.runtime.client.wire.credentials", "Credentials"),
    "Retries": ("echovlm_edge.runtime.client.wire.attempts", "Retries"),
    "read_image": ("echovlm_edge.runtime.contracts.image_path", "read_image"),
}


def __getattr__(name: str) -> Any:
    """The names of version 0.1, with a warning that says where they are now."""
    if name not in _OLD:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, new = _OLD[name]
    instead = "echovlm_edge.ReportClient" if name == "ReportClient" else f"{module}.{new}"
    warnings.warn(f"{__name__}.{name} goes with version 0.3: use {instead}.", DeprecationWarning, stacklevel=2)
    return getattr(import_module(module), new)
