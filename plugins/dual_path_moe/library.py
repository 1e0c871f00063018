"""Where the operators' native library is installed, for `SessionOptions.register_custom_ops_library`."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

OPERATOR_LIBRARY = "echovlm_dual_path_moe"  # as bundle.json names it
FILE_NAME = f"lib{OPERATOR_LIBRARY}.so"


def library_path() -> Path | None:
    """The library that was built with this package, or None where there was no C++ compiler."""
    package = importlib.resources.files("echovlm_edge.plugins.dual_path_moe")
    # An editable install has one folder of sources and another of built files.
    with importlib.resources.as_file(package.joinpath(FILE_NAME)) as path:
        return Path(path) if path.is_file() else None
