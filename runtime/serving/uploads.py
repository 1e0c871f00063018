"""Files that are larger than a request: they come in parts, live in memory for a while, and are named in calls by their ids."""

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
    """How many uploaded files there are at once, how much they take, and when one that is not used is forgotten.

    Attributes:
        max_bytes: of all files, those included that are still coming; 0 takes none.
        max_files: likewise.
        max_file_bytes: of one.
        expires_after_seconds: without a use.
    """

    max_bytes: int = 1 << 30
    max_files: int = 64
    max_file_bytes: int = ImageLimits().max_bytes
    expires_after_seconds: float = 300.0


@dataclass(eq=False)
class _Held:
    """A file that takes memory: one that is coming, has an id, or is in use."""

    client: str
    used: float
    bytes: int = 0
    users: int = 0
    file: MemoryFile | None = None


class Uploads:
    """The uploaded files of all clients; each is seen only by the client that sent it.

    What is forgotten while a call uses it is there, and counted, until the call does so no more.
    """

    def __init__(self, limits: UploadLimits, clock: Callable[[], float] = time.monotonic) -> None:
        """There are none."""
        self.limits = limits
        self._clock = clock
        self._named: dict[str, _Held] = {}
        self._held: set[_Held] = set()
        self._lock = threading.Lock()
        self._closed = False

    def most_bytes(self, client: Client) -> int:
        """How large a file of this client may be; 0 where none is taken."""
        return min(self.limits.max_file_bytes, client.share(self.limits.max_bytes)) if self.limits.max_bytes else 0

    def begin(self, client: Client) -> IncomingFile:
        """Begin to take a file; whoever asks finishes or abandons it.

        Raises:
            Busy: there are as many as there may be, or no memory, or no descriptor, for another one.
            NotOffered: this server takes none.
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
                raise Busy("As many files are uploaded as there may be: ask again later.", RETRY_SECONDS)
            if own >= client.share(self.limits.max_files):
                raise Busy(
                    f"{own} uploaded files of yours are here, as many as you may have: forget one first.", RETRY_SECONDS
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
        """A file, for as long as the context lasts: then it is forgotten no sooner than its time after that.

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
        """Forget those that have not been used for too long."""
        with self._lock:
            self._forget_old()

    def counts(self) -> tuple[int, int]:
        """How many there are, and their bytes; those included that are still coming."""
        with self._lock:
            return len(self._held), sum(held.bytes for held in self._held)

    def close(self) -> None:
        """Take nothing new: running calls can still use what is there."""
        with self._lock:
            self._closed = True

    def grow(self, client: Client, held: _Held, more: int) -> None:
        """Count bytes that a file gets, before it gets them.

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
        """Give a file that has come an id."""
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
            raise Busy("The memory for uploaded files is full: ask again later.", RETRY_SECONDS)
        if own + more > client.share(self.limits.max_bytes):
            raise Busy("Your uploaded files have all the memory that they may have: forget one first.", RETRY_SECONDS)

    def _find(self, client: Client, name: str) -> _Held:
        self._forget_old()
        held = self._named.get(name)
        if held is None or held.client != client.name:
            raise NotFound("There is no such upload: it was forgotten, or not used for too long; send the file again.")
        return held

    def _forget_old(self) -> None:
        oldest = self._clock() - self.limits.expires_after_seconds
        for name, held in list(self._named.items()):
            if held.used < oldest and not held.users:
                del self._named[name]
                self._drop_unless_kept(held)

    def _drop_unless_kept(self, held: _Held) -> None:
        """Give its memory back, unless it has an id or is in use; with the lock held."""
        if not held.users and held not in self._named.values():
            self._held.discard(held)
            if held.file:
                held.file.close()


class IncomingFile:
    """A file that is being uploaded. Its parts are added by one thread after another; any thread may abandon it meanwhile."""

    def __init__(self, uploads: Uploads, client: Client, held: _Held, writer: MemoryFileWriter) -> None:
        """Made by `Uploads.begin`."""
        self._uploads, self._client, self._held, self._writer = uploads, client, held, writer
        self._lock = (
            threading.Lock()
        )  # a descriptor must not be closed, and given to somebody else's file, under a write
        self._abandoned = False

    @property
    def size(self) -> int:
        """Bytes that have come."""
        return self._held.bytes

    def add(self, part: bytes) -> None:
        """Write what follows.

        Raises:
            Busy: there is no room for it now.
            InvalidInput: it is empty, or the file is larger than it may be.
        """
        if not part:
            raise InvalidInput("A part of the upload is empty: send parts that hold bytes.")
        with self._lock:
            if self._abandoned:
                return
            self._uploads.grow(self._client, self._held, len(part))
            try:
                self._writer.write(part)
            except OSError:
                raise Busy("The server has no memory for the upload now: ask again later.", RETRY_SECONDS) from None

    def finish(self) -> str:
        """Keep the file; returns its id.

        Raises:
            InvalidInput: nothing has come.
            Unavailable: it was abandoned.
        """
        if not self.size:
            raise InvalidInput("The upload is empty: send the file's bytes.")
        with self._lock:
            if self._abandoned:
                raise Unavailable("The upload was given up: send the file again.")
            return self._uploads.keep(self._held, self._writer.finish())

    def abandon(self) -> None:
        """Forget it, finished or not."""
        with self._lock:
            self._abandoned = True
            self._writer.close()
            self._uploads.drop(self._held)


def _writer() -> MemoryFileWriter:
    try:
        return MemoryFileWriter()
    except OSError:
        raise Busy("The server has no descriptor for an upload now: ask again later.", RETRY_SECONDS) from None
