"""Find the native libraries that are installed with this package: ONNX Runtime's operators and TensorRT's plugin."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

OPERATOR_LIBRARY = "echovlm_dual_path_moe"  # both as bundle.json names them
PLUGIN_LIBRARY = "echovlm_plugins"


def library_path() -> Path | None:
    """Return the path of ONNX Runtime's operators, for `SessionOptions.register_custom_ops_library`; None if they were not built."""
    return _installed(OPERATOR_LIBRARY)


def plugin_path() -> Path | None:
    """Return the path of TensorRT's plugin, for `IPluginRegistry.load_library`; None if it was built without TensorRT's headers."""
    return _installed(PLUGIN_LIBRARY)


def _installed(name: str) -> Path | None:
    package = importlib.resources.files("echovlm_edge.plugins.dual_path_moe")
    # An editable install has one folder of sources and another of built files.
    with importlib.resources.as_file(package.joinpath(f"lib{name}.so")) as path:
        return Path(path) if path.is_file() else None
