"""The Python client and its command.

Programs use `from echovlm_edge import ReportClient`. The names that this module had in version 0.1 are kept for one minor version.
"""

from __future__ import annotations

import os
import warnings
from importlib import import_module
from typing import Any

# gRPC logs some twenty lines for a failure that our error explains in a sentence. It reads this variable once, on import.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

_OLD = {
    "ReportClient": ("echovlm_edge.runtime.client.wire.connection", "Connection"),
    "ReportRequest": ("echovlm_edge.runtime.client.wire.requests", "ReportRequest"),
    "Credentials": ("echovlm_edge.runtime.client.wire.credentials", "Credentials"),
    "Retries": ("echovlm_edge.runtime.client.wire.attempts", "Retries"),
    "read_image": ("echovlm_edge.runtime.contracts.image_path", "read_image"),
}


def __getattr__(name: str) -> Any:
    """Return a name of version 0.1, with a warning that says where it is now."""
    if name not in _OLD:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, new = _OLD[name]
    instead = "echovlm_edge.ReportClient" if name == "ReportClient" else f"{module}.{new}"
    warnings.warn(f"{__name__}.{name} goes with version 0.3: use {instead}.", DeprecationWarning, stacklevel=2)
    return getattr(import_module(module), new)
