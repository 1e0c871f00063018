"""Landlock: deny this process all files and directories, TCP, and signals to others, as far as the kernel supports it."""

from __future__ import annotations

import ctypes
import os
import struct

# The same numbers on every architecture: the kernel's unified table.
CREATE_RULESET, RESTRICT_SELF = 444, 446
CREATE_RULESET_VERSION = 1  # a flag: ask for the version
# linux/landlock.h: the rights that each version knows
FILES = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
TCP = {4: 0b11}  # bind, connect
SCOPES = {6: 0b11}  # abstract Unix sockets, and signals, of processes outside


def version() -> int:
    """Return the kernel's version of Landlock; 0 where it has none."""
    libc = ctypes.CDLL(None, use_errno=True)
    return max(0, int(libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), CREATE_RULESET_VERSION)))


def give_up_everything() -> None:
    """Deny everything that the kernel's version can deny. Files that are already open stay usable.

    Raises:
        OSError: the kernel has no Landlock, or it is switched off.
    """
    found = version()
    if not found:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    # struct landlock_ruleset_attr: handled files, handled network, scopes; an older kernel takes a shorter one
    attributes = [_known(FILES, found), _known(TCP, found), _known(SCOPES, found)]
    packed = struct.pack(f"={len(attributes)}Q", *attributes)[: 8 * (1 + (found >= 4) + (found >= 6))]
    libc = ctypes.CDLL(None, use_errno=True)
    ruleset = libc.syscall(CREATE_RULESET, packed, ctypes.c_size_t(len(packed)), 0)
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        if libc.syscall(RESTRICT_SELF, ruleset, 0):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(ruleset)


def _known(rights: dict[int, int], found: int) -> int:
    return max((bits for since, bits in rights.items() if since <= found), default=0)
