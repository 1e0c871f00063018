"""A queue in which priority goes first, then the client that has had least, then who came first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class _Entry(Generic[Item]):
    item: Item
    client: str
    priority: int
    arrival: int


class FairQueue(Generic[Item]):
    """Waiting work of many clients. Not safe for concurrent use: its owner holds a lock.

    What a client had is counted in units of work (tokens, patches) that `charge` adds up. One that comes anew starts level
    with the client served last, so that nobody saves turns up by staying away (Sheng et al. 2024, "Fairness in serving large
    language models", section 4.1).
    """

    def __init__(self) -> None:
        self._entries: list[_Entry[Item]] = []
        self._had: dict[str, float] = {}
        self._level = 0.0
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, item: Item, client: str, priority: int) -> None:
        """Join at the end of the client's own line."""
        if all(entry.client != client for entry in self._entries):
            self._had[client] = max(self._had.get(client, 0.0), self._level)
        self._arrivals += 1
        self._entries.append(_Entry(item, client, priority, self._arrivals))

    def best_priority(self) -> int | None:
        """That of the item which `pop` would give, or None where nothing waits."""
        return min((entry.priority for entry in self._entries), default=None)

    def pop(self) -> Item:
        """Whose turn it is.

        Raises:
            IndexError: nothing waits.
        """
        if not self._entries:
            raise IndexError("pop from an empty queue")
        first = min(self._entries, key=lambda entry: (entry.priority, self._had[entry.client], entry.arrival))
        self._entries.remove(first)
        self._level = self._had[first.client]
        return first.item

    def charge(self, client: str, work: float) -> None:
        """Count work that was done for a client; clients that are level with the newest are forgotten."""
        self._had[client] = self._had.get(client, self._level) + work
        waiting = {entry.client for entry in self._entries} | {client}
        self._had = {name: had for name, had in self._had.items() if had > self._level or name in waiting}

    def take(self, wanted: Callable[[Item], bool]) -> list[Item]:
        """Remove and give every item that `wanted` says."""
        taken = [entry.item for entry in self._entries if wanted(entry.item)]
        self._entries = [entry for entry in self._entries if not wanted(entry.item)] if taken else self._entries
        return taken
