"""The file of one instance while it is received: not longer than it may be, in the room that there is, and durable at its end."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from echovlm_edge.runtime.dicom_node.spool.arrivals import Arrivals

STEP = 1 << 20  # bytes that are written before room is taken for them


class TooMuch(Exception):
    """A peer sends more than it may."""


class Room:
    """The spool's room for instances that are being received. Threads may share it.

    What arrives at the same time is counted, so that many large instances together cannot fill the disk, whose reserve is for what is
    owed.
    """

    def __init__(self, arrivals: Arrivals, spool_bytes: int, reserve_bytes: int, make_room: Callable[[], None]) -> None:
        """Give room for `spool_bytes` in all, while `reserve_bytes` of the disk stay free; `make_room` empties what is delivered."""
        self._arrivals, self._spool, self._reserve = arrivals, spool_bytes, reserve_bytes
        self._make_room, self._lock, self._arriving = make_room, threading.Lock(), 0

    def take(self, size: int) -> None:
        """Take room for so many bytes.

        Raises:
            OSError: the spool or its disk is full.
            sqlite3.Error: the spool cannot be read.
        """
        with self._lock:
            if self._used(size) > self._spool:
                self._make_room()
            if self._used(size) > self._spool or self._arrivals.free_bytes() < self._reserve + size:
                raise OSError(errno.ENOSPC, "the spool or its disk is full")
            self._arriving += size

    def give_back(self, size: int) -> None:
        """Give room back, of an instance that is in the spool now or was not taken."""
        with self._lock:
            self._arriving -= size

    def _used(self, size: int) -> int:
        return self._arrivals.used_bytes() + self._arriving + size


class ReceivedFile:
    """A file in `incoming/` that is being written. Not for two threads at once."""

    def __init__(self, path: Path, room: Room, most_bytes: int) -> None:
        """Create the file.

        Raises:
            OSError, sqlite3.Error: the spool or its disk is full, or fails.
        """
        self.path = path
        self._room, self._most = room, most_bytes
        self._digest = hashlib.sha256()
        self._bytes = self._taken = 0
        room.take(0)
        self._file: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

    def append(self, data: bytes, *, is_head: bool = False) -> None:
        """Append a piece; a head is what the node itself writes before the instance, and is not in the digest.

        Raises:
            TooMuch: the file is longer than it may be.
            OSError, sqlite3.Error: the spool or its disk is full, or fails.
        """
        assert self._file is not None
        self._bytes += len(data)
        if self._bytes > self._most:
            raise TooMuch
        if self._bytes - self._taken >= STEP:
            self._take()
        if not is_head:
            self._digest.update(data)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._file, rest) :]

    def finish(self) -> bytes:
        """Make the file durable; returns its digest.

        Raises:
            OSError, sqlite3.Error: the spool or its disk is full, or fails.
        """
        assert self._file is not None
        self._take()
        os.fsync(self._file)
        os.close(self._file)
        self._file = None
        return self._digest.digest()

    def discard(self) -> None:
        """Close and remove the file, unless the spool has taken it, and give its room back; again without effect."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        self._room.give_back(self._taken)
        self._taken = 0

    def _take(self) -> None:
        self._room.take(self._bytes - self._taken)
        self._taken = self._bytes
