"""Two paths swapped in one step, by Linux' renameat2: at no moment is either of them absent."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_HERE = -100  # AT_FDCWD: paths are as the process sees them
_EXCHANGE = 2  # RENAME_EXCHANGE


def exchange(one: Path, other: Path) -> bool:
    """Swap what lies at two paths of one file system; False, with nothing changed, where that cannot be done here."""
    try:
        rename = ctypes.CDLL(None).renameat2  # Python has no name for it
    except AttributeError:  # an older C library, or another system's
        return False
    return bool(rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)
