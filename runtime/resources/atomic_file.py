"""Files that a reader sees whole or not at all."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from echovlm_edge.runtime.contracts.errors import NotPossibleHere


def write_whole(path: Path, content: bytes, name: str = "The file") -> None:
    """Write beside the place, then move there; `name` is for the sentence.

    Raises:
        NotPossibleHere: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise NotPossibleHere(f"{name} {path} cannot be written ({error.strerror}).") from None
