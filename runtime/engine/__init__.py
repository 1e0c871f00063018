"""One loaded bundle that answers many requests at once."""

from __future__ import annotations

import warnings
from typing import Any


def __getattr__(name: str) -> Any:
    """Return a name of version 0.1, with a warning that says where it is now."""
    if name != "ReportEngine":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"{__name__}.ReportEngine goes with version 0.3: use echovlm_edge.ReportEngine.",
        DeprecationWarning,
        stacklevel=2,
    )
    from echovlm_edge.runtime.engine.report_engine import ReportEngine

    return ReportEngine
