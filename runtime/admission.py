"""At the door: how many calls are inside at once, in all and by client; whoever finds no room is told when to ask again."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from echovlm_edge.runtime.clients import Client
from echovlm_edge.runtime.errors import Busy, Unavailable

FIRST_GUESS_SECONDS = 5.0  # of a call, before any has ended
SMOOTHING = 0.2  # weight of the newest call in the running mean


class Admission:
    """Counts calls in and out. One that waits for a slot holds a place, so the queue is bounded by the places."""

    def __init__(self, places: int, slots: int) -> None:
        """`places`: calls inside at once; `slots`: how many of them run together."""
        self._places, self._slots = places, slots
        self._inside: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._mean_seconds = FIRST_GUESS_SECONDS
        self._draining = False

    @property
    def inside(self) -> int:
        """How many calls are inside."""
        with self._lock:
            return self._inside.total()

    def drain(self) -> None:
        """From now on nobody comes in."""
        self._draining = True

    @contextmanager
    def place(self, client: Client) -> Iterator[None]:
        """A place for one call, as long as it takes.

        Raises:
            Busy: all places are taken, or all of this client's own.
            Unavailable: the server is shutting down.
        """
        self._enter(client)
        started = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._inside[client.name] -= 1
                self._inside += Counter()  # forgets clients that are gone
                self._mean_seconds += SMOOTHING * (time.monotonic() - started - self._mean_seconds)

    def _enter(self, client: Client) -> None:
        with self._lock:
            if self._draining:
                raise Unavailable("The server is shutting down: ask again in a while.")
            inside = self._inside.total()
            if inside >= self._places:
                raise Busy(f"The server is busy with {inside} calls: ask again when one has ended.", self._wait(inside))
            if client.max_calls is not None and self._inside[client.name] >= client.max_calls:
                raise Busy(
                    f"{client.max_calls} calls of yours are running, as many as you may have: ask again when one has ended.",
                    self._wait(client.max_calls),
                )
            self._inside[client.name] += 1

    def _wait(self, inside: int) -> float:
        """Seconds until a place comes free, were all calls as long as the last ones."""
        return max(0.1, self._mean_seconds / max(1, min(inside, self._slots)))
