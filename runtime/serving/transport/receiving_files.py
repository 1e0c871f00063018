"""Limit the files that are being uploaded: how many at once, in total and per client, and their minimum speed."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass

from echovlm_edge.runtime.contracts.errors import Busy
from echovlm_edge.runtime.serving.transport.receiving import Read, Receiver
from echovlm_edge.runtime.serving.uploads import IncomingFile

RETRY_SECONDS = 5.0


@dataclass(frozen=True)
class FileReceivingLimits:
    """How many files are received at once; a part of each may take the largest message's memory.

    Attributes:
        total: of all clients.
        per_client: of one client.
        seconds: for a part to arrive.
        slowest: bytes per second, averaged over the whole file, after those first seconds.
    """

    total: int = 8
    per_client: int = 2
    seconds: float = 30.0
    slowest: int = 64 << 10


class FileReceiver:
    """Reads the parts of uploads within the limits. All methods run on one event loop."""

    def __init__(self, limits: FileReceivingLimits, receiver: Receiver, threads: Executor) -> None:
        """Start with no uploads; `threads` write the parts."""
        self._limits, self._receiver, self._threads = limits, receiver, threads
        self._receiving: Counter[str] = Counter()

    @contextmanager
    def place(self, client: str) -> Iterator[None]:
        """Take a place for one upload of a client.

        Raises:
            Busy: all places are taken, or all that this client may have.
        """
        if self._receiving.total() >= self._limits.total:
            raise Busy("The maximum number of files is being uploaded: try again when one has arrived.", RETRY_SECONDS)
        if self._receiving[client] >= self._limits.per_client:
            raise Busy(
                f"{self._limits.per_client} of your files are being uploaded, the maximum for your client: try again when one "
                "has arrived.",
                RETRY_SECONDS,
            )
        self._receiving[client] += 1
        try:
            yield
        finally:
            self._receiving[client] -= 1
            self._receiving += Counter()  # drops clients without uploads

    async def receive(self, read: Read[bytes | None], file: IncomingFile, bytes_of: Callable[[bytes], bytes]) -> None:
        """Receive a file to its end.

        Args:
            read: reads the next part's message; returns None after the last.
            file: the file to append the parts to.
            bytes_of: parses a message to the part's bytes.

        Raises:
            InvalidInput: a part does not arrive in time or is invalid, or the file is larger than it may be.
            Busy: there is no memory for the whole file.
            Unavailable: the server is shutting down.
        """

        def add(part: bytes) -> None:
            file.add(bytes_of(part))

        loop, started = asyncio.get_running_loop(), time.monotonic()
        while (part := await self._receiver.receive_part(read, self.patience(started, file.size))) is not None:
            await loop.run_in_executor(self._threads, add, part)

    def patience(self, started: float, size: int) -> float:
        """Return the seconds within which the next part must arrive, of an upload of which `size` bytes have come since `started`."""
        allowed = self._limits.seconds + size / self._limits.slowest
        return max(0.0, min(self._limits.seconds, started + allowed - time.monotonic()))
