"""What the server would refuse of its options, before it loads a bundle."""

from __future__ import annotations

from pathlib import Path

from echovlm_edge.runtime.contracts.errors import UserError
from echovlm_edge.runtime.doctor.checks import Finding, Level
from echovlm_edge.runtime.serving.supervision.from_settings import checked
from echovlm_edge.runtime.serving.supervision.serve_settings import ServeSettings


def refused(settings: ServeSettings, file: Path) -> list[Finding]:
    """List why a server with the settings of a configuration file would not start."""
    try:
        checked(settings)
    except UserError as error:
        return [Finding(Level.WRONG, f"echovlm-serve --config {file} would not start: {error}", "")]
    return []
