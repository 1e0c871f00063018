"""Which files in memory are open in this process."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def memory_files() -> frozenset[tuple[str, int]]:
    """Descriptor and inode of each memory file of ours.

    Compare with `<=`: what earlier tests left open may be closed meanwhile, by whatever thread still had it; nothing may be new.
    """
    found = set[tuple[str, int]]()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            if "memfd:image" in str(descriptor.readlink()):
                found.add((descriptor.name, descriptor.stat().st_ino))
    return frozenset(found)
