"""Atomic writes: a reader sees the complete file or none."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from echovlm_edge.runtime.contracts.errors import NotPossibleHere


def write_whole(path: Path, content: bytes, name: str = "The file") -> None:
    """Write a file atomically: to a temporary file in the same folder, which is then renamed.

    Args:
        path: the file.
        content: its bytes.
        name: what the error's sentence calls it.

    Raises:
        NotPossibleHere: the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.unlink(missing_ok=True)  # whatever has its name, such as a pipe that nobody reads
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise NotPossibleHere(f"{name} {path} cannot be written ({error.strerror}).") from None
