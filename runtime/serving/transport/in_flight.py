"""Count the calls that are in flight by any door, in total and per client."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from echovlm_edge.runtime.contracts.errors import Busy


class CallsInFlight:
    """Calls whose last byte is not delivered yet. All methods run on one event loop."""

    def __init__(self, total: int, per_client: int) -> None:
        """Start with none; at most `total` of all clients, and `per_client` of one."""
        self._total, self._per_client = total, per_client
        self._calls: Counter[str] = Counter()

    def __len__(self) -> int:
        """How many there are."""
        return self._calls.total()

    @contextmanager
    def counted(self, who: str) -> Iterator[None]:
        """Count a call of a client for as long as the context lasts.

        Raises:
            Busy: the limit of calls, or of calls of this client, is reached.
        """
        if len(self) >= self._total or self._calls[who] >= self._per_client:
            raise Busy("Too many calls are in flight: try again when one has ended.", 1.0)
        self._calls[who] += 1
        try:
            yield
        finally:
            self._calls[who] -= 1
            if not self._calls[who]:
                del self._calls[who]
