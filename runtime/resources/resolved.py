"""The folder that a path means, whatever the working folder is and wherever `.` and `..` lead."""

from __future__ import annotations

from pathlib import Path

from echovlm_edge.runtime.contracts.errors import NotPossibleHere


def resolved(path: Path) -> Path:
    """Return the absolute path with all links followed, as far as it exists.

    Raises:
        NotPossibleHere: a link leads to itself, or the working folder is gone.
    """
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        raise NotPossibleHere(f"{path} leads nowhere: a link leads to itself, or the working folder is gone.") from None
