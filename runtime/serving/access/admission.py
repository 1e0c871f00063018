"""Limit how many calls run or wait at once, in total and per client, and how much memory their requests take."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from echovlm_edge.runtime.contracts.errors import SHUTTING_DOWN, Busy, Unavailable
from echovlm_edge.runtime.serving.access.clients import Client

FIRST_GUESS_SECONDS = 5.0  # duration of a call, before any has ended
SMOOTHING = 0.2  # weight of the newest call in the running mean


class Admission:
    """Admits calls to a limited number of places. A call that waits for a slot holds a place too, which bounds the queue.

    A client without `max_calls` gets its `Client.share` of the places.
    """

    def __init__(self, places: int, slots: int, request_bytes: int) -> None:
        """Start with all places free.

        Args:
            places: calls admitted at once.
            slots: how many of them run together.
            request_bytes: memory of all their messages.
        """
        self._places, self._slots = places, slots
        self._batch, self._batch_places = 0, max(1, places // 2)
        self._held, self._request_bytes = 0, request_bytes
        self._inside: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._mean_seconds = FIRST_GUESS_SECONDS
        self._draining = False

    @property
    def inside(self) -> int:
        """How many calls hold a place."""
        with self._lock:
            return self._inside.total()

    @property
    def places(self) -> int:
        """How many calls can hold a place at once."""
        return self._places

    def load(self) -> dict[str, int]:
        """Count the calls that hold a place by the names of their clients."""
        with self._lock:
            return dict(self._inside)

    def drain(self) -> None:
        """Refuse all calls from now on."""
        self._draining = True

    def most_at_once(self, client: Client, request_bytes: int, batch: bool = False) -> int:
        """Return how many calls of a client with requests of `request_bytes` each can hold places together on an idle server."""
        most = min(self._places, self._most(client), self._batch_places if batch else self._places)
        return max(1, min(most, self._request_bytes // request_bytes) if request_bytes else most)

    def check(self, client: Client) -> None:
        """Refuse a call that would get no place now, before its message is read.

        Raises:
            Busy: all places are taken, or all of this client's own.
            Unavailable: the server is shutting down.
        """
        with self._lock:
            self._refuse_without_room(client)

    @contextmanager
    def place(self, client: Client, request_bytes: int, batch: bool = False) -> Iterator[None]:
        """Take a place for one call, for as long as it works; batch calls get at most half of all places.

        Raises:
            Busy: all places are taken, or all that this client or batch calls may have; or the requests of the admitted calls
                leave no memory for one of `request_bytes`.
            Unavailable: the server is shutting down.
        """
        self._enter(client, request_bytes, batch)
        started = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._inside[client.name] -= 1
                self._inside += Counter()  # drops clients without calls
                self._batch -= batch
                self._held -= request_bytes
                self._mean_seconds += SMOOTHING * (time.monotonic() - started - self._mean_seconds)

    def _enter(self, client: Client, request_bytes: int, batch: bool) -> None:
        with self._lock:
            self._refuse_without_room(client)
            if batch and self._batch >= self._batch_places:
                raise Busy(
                    f"{self._batch} batch calls are in progress, the maximum: try again when one has ended.",
                    self._wait(self._batch),
                )
            if self._held and self._held + request_bytes > self._request_bytes:
                raise Busy(
                    f"The calls in progress hold {self._held / 1e6:.0f} MB of requests, and yours would exceed the maximum: "
                    "try again when one has ended.",
                    self._wait(self._inside.total()),
                )
            self._inside[client.name] += 1
            self._batch += batch
            self._held += request_bytes

    def _refuse_without_room(self, client: Client) -> None:
        if self._draining:
            raise Unavailable(SHUTTING_DOWN)
        inside = self._inside.total()
        if inside >= self._places:
            raise Busy(f"The server is busy with {inside} calls: try again when one has ended.", self._wait(inside))
        most = self._most(client)
        if self._inside[client.name] >= most:
            raise Busy(
                f"{most} of your calls are in progress, the maximum for your client: try again when one has ended.",
                self._wait(most),
            )

    def _most(self, client: Client) -> int:
        return client.max_calls or client.share(self._places)

    def _wait(self, inside: int) -> float:
        """Estimate the seconds until a place comes free, as if all calls took as long as the last ones."""
        return max(0.1, self._mean_seconds / max(1, min(inside, self._slots)))
