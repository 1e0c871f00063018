"""Swap two paths atomically with Linux's renameat2, so that neither is ever absent."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_HERE = -100  # AT_FDCWD: paths are as the process sees them
_EXCHANGE = 2  # RENAME_EXCHANGE


def exchange(one: Path, other: Path) -> bool:
    """Swap two paths of one file system; returns False, with nothing changed, where the system cannot do it."""
    try:
        rename = ctypes.CDLL(None).renameat2  # Python has no name for it
    except AttributeError:  # an older C library, or another system's
        return False
    return bool(rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)
