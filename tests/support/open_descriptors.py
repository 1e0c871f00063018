"""Count this process's open descriptors."""

from __future__ import annotations

import gc
from pathlib import Path


def descriptors() -> int:
    """Count them, after garbage collection."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def memory_files() -> int:
    """Count those that are memory files."""
    return sum("memfd:image" in target for target in map(_target, Path("/proc/self/fd").iterdir()))


def _target(descriptor: Path) -> str:
    try:
        return str(descriptor.readlink())
    except FileNotFoundError:  # closed meanwhile
        return ""
