"""Uploads: files larger than a request, which arrive in parts, stay in memory for a while, and are named by id in calls."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from echovlm_edge.runtime.contracts.errors import SHUTTING_DOWN, Busy, InvalidInput, NotFound, NotOffered, Unavailable
from echovlm_edge.runtime.contracts.memory_file import MemoryFile, MemoryFileWriter
from echovlm_edge.runtime.imaging.image_file import ImageLimits
from echovlm_edge.runtime.serving.access.clients import Client

RETRY_SECONDS = 10.0


@dataclass(frozen=True)
class UploadLimits:
    """How many uploaded files there may be at once, how much memory they may take, and when an unused one expires.

    Attributes:
        max_bytes: of all files together, including those that are still arriving; 0 accepts no uploads.
        max_files: how many, including those that are still arriving.
        max_file_bytes: of one file.
        expires_after_seconds: without a use.
    """

    max_bytes: int = 1 << 30
    max_files: int = 64
    max_file_bytes: int = ImageLimits().max_bytes
    expires_after_seconds: float = 300.0


@dataclass(eq=False)
class _Held:
    """A file that takes memory: it is arriving, has an id, or is in use."""

    client: str
    used: float
    bytes: int = 0
    users: int = 0
    file: MemoryFile | None = None


class Uploads:
    """The uploaded files of all clients; only the client that sent a file can use it.

    A file that is forgotten while a call uses it stays in memory, and is counted, until that call is done with it.
    """

    def __init__(self, limits: UploadLimits, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with no files."""
        self.limits = limits
        self._clock = clock
        self._named: dict[str, _Held] = {}
        self._held: set[_Held] = set()
        self._lock = threading.Lock()
        self._closed = False

    def most_bytes(self, client: Client) -> int:
        """Return how many bytes a file of this client may have; 0 if the server accepts no uploads."""
        return min(self.limits.max_file_bytes, client.share(self.limits.max_bytes)) if self.limits.max_bytes else 0

    def begin(self, client: Client) -> IncomingFile:
        """Start to receive a file; the caller has to finish or abandon it.

        Raises:
            Busy: there are as many files as there may be, or no memory or descriptor for another one.
            NotOffered: this server accepts no uploads.
            Unavailable: the server is shutting down.
        """
        if not self.limits.max_bytes:
            raise NotOffered(
                "This server takes no uploads: send the file, or those of its frames that are asked for, in the request."
            )
        with self._lock:
            if self._closed:
                raise Unavailable(SHUTTING_DOWN)
            self._forget_old()
            self._refuse_without_room(client, 1)
            own = sum(held.client == client.name for held in self._held)
            if len(self._held) >= self.limits.max_files:
                raise Busy("The server holds the maximum number of uploaded files: try again later.", RETRY_SECONDS)
            if own >= client.share(self.limits.max_files):
                raise Busy(
                    f"The server holds {own} of your uploaded files, the maximum for your client: forget one first.",
                    RETRY_SECONDS,
                )
            held = _Held(client.name, self._clock())
            self._held.add(held)
        try:
            return IncomingFile(self, client, held, _writer())
        except BaseException:
            self.drop(held)
            raise

    @contextmanager
    def use(self, client: Client, name: str) -> Iterator[MemoryFile]:
        """Use a file for as long as the context lasts; its time to expire starts at the context's end.

        Raises:
            NotFound: no such file.
        """
        with self._lock:
            held = self._find(client, name)
            held.users += 1
        assert held.file is not None
        try:
            yield held.file
        finally:
            with self._lock:
                held.users -= 1
                held.used = self._clock()
                self._drop_unless_kept(held)

    def forget(self, client: Client, name: str) -> None:
        """Forget a file.

        Raises:
            NotFound: no such file.
        """
        with self._lock:
            held = self._find(client, name)
            del self._named[name]
            self._drop_unless_kept(held)

    def forget_old(self) -> None:
        """Forget the files that have not been used for too long."""
        with self._lock:
            self._forget_old()

    def counts(self) -> tuple[int, int]:
        """Return how many files there are and their bytes, including those that are still arriving."""
        with self._lock:
            return len(self._held), sum(held.bytes for held in self._held)

    def close(self) -> None:
        """Accept no new files; running calls can still use those that are there."""
        with self._lock:
            self._closed = True

    def grow(self, client: Client, held: _Held, more: int) -> None:
        """Reserve `more` bytes for a file, before they are written.

        Raises:
            Busy: there is no room for them now.
            InvalidInput: the file is larger than it may be.
        """
        most = self.most_bytes(client)
        if held.bytes + more > most:
            raise InvalidInput(f"The uploaded file has more than {most:,} bytes: send a smaller one.")
        with self._lock:
            self._forget_old()
            self._refuse_without_room(client, more)
            held.bytes += more

    def keep(self, held: _Held, file: MemoryFile) -> str:
        """Give a file that has arrived completely an id; returns the id."""
        with self._lock:
            held.file, held.used = file, self._clock()
            name = secrets.token_urlsafe(18)
            self._named[name] = held
            return name

    def drop(self, held: _Held) -> None:
        """Forget a file, whether it has an id or not."""
        with self._lock:
            for name in [name for name, other in self._named.items() if other is held]:
                del self._named[name]
            self._drop_unless_kept(held)

    def _refuse_without_room(self, client: Client, more: int) -> None:
        taken = sum(held.bytes for held in self._held)
        own = sum(held.bytes for held in self._held if held.client == client.name)
        if taken + more > self.limits.max_bytes:
            raise Busy("The memory for uploaded files is full: try again later.", RETRY_SECONDS)
        if own + more > client.share(self.limits.max_bytes):
            raise Busy("Your uploaded files use all the memory of your client: forget one first.", RETRY_SECONDS)

    def _find(self, client: Client, name: str) -> _Held:
        self._forget_old()
        held = self._named.get(name)
        if held is None or held.client != client.name:
            raise NotFound("There is no such upload: it was forgotten, or has expired; send the file again.")
        return held

    def _forget_old(self) -> None:
        oldest = self._clock() - self.limits.expires_after_seconds
        for name, held in list(self._named.items()):
            if held.used < oldest and not held.users:
                del self._named[name]
                self._drop_unless_kept(held)

    def _drop_unless_kept(self, held: _Held) -> None:
        """Free a file's memory, unless it has an id or is in use; the caller holds the lock."""
        if not held.users and held not in self._named.values():
            self._held.discard(held)
            if held.file:
                held.file.close()


class IncomingFile:
    """A file that is being uploaded. One thread at a time adds its parts; any thread may abandon it meanwhile."""

    def __init__(self, uploads: Uploads, client: Client, held: _Held, writer: MemoryFileWriter) -> None:
        """Start with no bytes; called by `Uploads.begin`."""
        self._uploads, self._client, self._held, self._writer = uploads, client, held, writer
        # During a write the descriptor must not be closed: it could be reused for somebody else's file.
        self._lock = threading.Lock()
        self._abandoned = False

    @property
    def size(self) -> int:
        """Bytes that have arrived."""
        return self._held.bytes

    def add(self, part: bytes) -> None:
        """Append a part.

        Raises:
            Busy: there is no memory for the part now.
            InvalidInput: the part is empty, or the file is larger than it may be.
        """
        if not part:
            raise InvalidInput("A part of the upload is empty: send parts that are not empty.")
        with self._lock:
            if self._abandoned:
                return
            self._uploads.grow(self._client, self._held, len(part))
            try:
                self._writer.write(part)
            except OSError:
                raise Busy("The server has no memory for the upload now: try again later.", RETRY_SECONDS) from None

    def finish(self) -> str:
        """Keep the file; returns its id.

        Raises:
            InvalidInput: the file is empty.
            Unavailable: the file was abandoned.
        """
        if not self.size:
            raise InvalidInput("The upload is empty: send the file's bytes.")
        with self._lock:
            if self._abandoned:
                raise Unavailable("The upload was aborted: send the file again.")
            return self._uploads.keep(self._held, self._writer.finish())

    def abandon(self) -> None:
        """Forget the file, finished or not."""
        with self._lock:
            self._abandoned = True
            self._writer.close()
            self._uploads.drop(self._held)


def _writer() -> MemoryFileWriter:
    try:
        return MemoryFileWriter()
    except OSError:
        raise Busy("The server has no free file descriptor for an upload: try again later.", RETRY_SECONDS) from None
