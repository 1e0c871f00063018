"""Split a multipart body (RFC 2046 5.1) into files, piece by piece: no part is ever in memory as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from echovlm_edge.runtime.dicom_node.receiving.received_file import ReceivedFile

MOST_PARTS, MOST_PART_HEAD = 4096, 16 << 10
MOST_AROUND = 16 << 10  # bytes before the first boundary and after the last


class Malformed(Exception):
    """The body is no multipart/related message of DICOM instances, or has too many parts."""


class PartFiles:
    """Splits one body."""

    def __init__(self, boundary: str, new_file: Callable[[], ReceivedFile]) -> None:
        """Write each part to the file that `new_file` returns."""
        self._mark = b"\r\n--" + boundary.encode()
        self._rest = b"\r\n"  # so that the first boundary is found like the others
        self._new_file = new_file
        self._file: ReceivedFile | None = None
        self._in_head = self._over = False
        self._parts = self._around = 0

    def feed(self, data: bytes) -> Iterator[ReceivedFile]:
        """Take the next piece of the body; yields the file of each part that it ends.

        Raises:
            Malformed: the body is not what it says.
            TooMuch: a part is too long.
            OSError, sqlite3.Error: the disk is full or fails.
        """
        if self._over:
            self._count_around(data)
            return
        self._rest += data
        while not self._over:
            if self._in_head:
                if not self._read_head():
                    return
                continue
            place = self._rest.find(self._mark)
            if place < 0:
                keep = len(self._mark) + 2
                self._put(self._rest[:-keep])
                self._rest = self._rest[-keep:]
                return
            if len(self._rest) < place + len(self._mark) + 2:
                return
            self._put(self._rest[:place])
            self._rest = self._rest[place + len(self._mark) :]
            if self._file is not None:
                ended, self._file = self._file, None
                yield ended
            self._over, self._in_head = self._rest.startswith(b"--"), True
        self._count_around(self._rest)

    def fed(self, data: bytes) -> list[ReceivedFile]:
        """Do as `feed`, and return the files."""
        return list(self.feed(data))

    @property
    def is_whole(self) -> bool:
        """Whether the last boundary has come."""
        return self._over

    def discard(self) -> None:
        """Remove the part that has not come to its end."""
        if self._file is not None:
            self._file.discard()
            self._file = None

    def _read_head(self) -> bool:
        head, found, rest = self._rest.partition(b"\r\n\r\n")
        if len(head) > MOST_PART_HEAD:
            raise Malformed
        if not found:
            return False
        self._parts += 1
        if b"application/dicom" not in head.lower() or b"+" in head.lower() or self._parts > MOST_PARTS:
            raise Malformed
        self._in_head = False
        self._file = self._new_file()
        # A part may be empty: its boundary begins with the line break that ends its head.
        self._rest = b"\r\n" + rest if rest.startswith(self._mark[2:]) else rest
        return True

    def _put(self, data: bytes) -> None:
        if self._file is not None:
            self._file.append(data)
        elif data.strip():
            raise Malformed  # before the first boundary
        else:
            self._count_around(data)

    def _count_around(self, data: bytes) -> None:
        """Refuse a body that never begins, or never ends."""
        self._around += len(data)
        if self._around > MOST_AROUND:
            raise Malformed
