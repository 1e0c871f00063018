"""A file in memory that has a descriptor, so that another process can read it without a copy."""

from __future__ import annotations

import fcntl
import mmap
import os
import weakref
from collections.abc import Iterable

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class MemoryFile:
    """A sealed file (memfd): nobody can change or shorten it while somebody reads. It is gone with the last process that has it.

    Attributes:
        descriptor: of the file; closed with this object.
    """

    def __init__(self, descriptor: int) -> None:
        """Take over a descriptor.

        Raises:
            OSError: it is of no file in memory.
            ValueError: the file is not sealed. Whoever reads one that is shortened meanwhile gets SIGBUS.
        """
        self.descriptor = descriptor
        self._closed = weakref.finalize(self, os.close, descriptor)
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & SEALS != SEALS:
            raise ValueError("the file can still be changed")
        self._size = os.lseek(descriptor, 0, os.SEEK_END)

    @classmethod
    def of(cls, parts: Iterable[bytes | bytearray | memoryview]) -> MemoryFile:
        """Write the parts one after another to a new file.

        Raises:
            OSError: there is no memory, or no descriptor, for it.
        """
        writer = MemoryFileWriter()
        try:
            for part in parts:
                writer.write(part)
            return writer.finish()
        except BaseException:
            writer.close()
            raise

    def __len__(self) -> int:
        """Its bytes."""
        return self._size

    def open(self) -> mmap.mmap:
        """Map the file, to be read from its start like any binary file. Nothing of it is read before it is asked for.

        Raises:
            ValueError: it is empty.
        """
        # Private: before Linux 6.7 a file that is sealed against writing cannot be mapped otherwise. Its pages are shared all the same.
        return mmap.mmap(self.descriptor, self._size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)

    def close(self) -> None:
        """Close the descriptor; what was mapped stays readable."""
        self._closed()


class MemoryFileWriter:
    """A file in memory that is still being written, by one thread at a time.

    Attributes:
        size: bytes written so far.
    """

    def __init__(self) -> None:
        """Begin an empty one.

        Raises:
            OSError: there is no descriptor for it.
        """
        self._descriptor = os.memfd_create("image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._closed = weakref.finalize(self, os.close, self._descriptor)
        self.size = 0

    def write(self, part: bytes | bytearray | memoryview) -> None:
        """Add bytes at the end.

        Raises:
            OSError: there is no memory for them.
        """
        view, at = memoryview(part).cast("B"), 0
        while at < len(view):
            at += os.write(self._descriptor, view[at:])
        self.size += len(view)

    def finish(self) -> MemoryFile:
        """Seal it: from now on it can only be read."""
        fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, SEALS)
        file = MemoryFile(self._descriptor)
        self._closed.detach()
        return file

    def close(self) -> None:
        """Forget what was written, unless it is finished."""
        self._closed()
