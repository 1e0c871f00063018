"""A queue ordered by priority, then by the client that has been served least, then by arrival."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class _Entry(Generic[Item]):
    item: Item
    arrival: int
    again: bool


class FairQueue(Generic[Item]):
    """The waiting work of many clients. Not safe for concurrent use: its owner holds a lock.

    The service that a client has received is counted in units of work (tokens, patches), which `charge` adds up. A client that
    returns after a pause starts level with the waiting client that has received least. So a client cannot save up service by staying
    away, and one that stays does not wait until others have caught up (Sheng et al. 2024, "Fairness in serving large language
    models", section 4.1). The cost of `push`, `pop` and `charge` depends on the number of clients, not of items.
    """

    def __init__(self) -> None:
        self._lines: dict[int, dict[str, deque[_Entry[Item]]]] = {}  # by priority and client; none is empty
        self._waiting: Counter[str] = Counter()  # items by client
        self._had: dict[str, float] = {}
        self._level = 0.0
        self._arrivals = self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Item]:
        """Iterate over all items, in no particular order."""
        return (entry.item for lines in self._lines.values() for line in lines.values() for entry in line)

    def push(self, item: Item, client: str, priority: int, again: bool = False) -> None:
        """Append an item to the client's own line; with `again`, put a preempted item before all others of its priority."""
        self._had[client] = self._lifted(client)
        self._arrivals += 1
        line = self._lines.setdefault(priority, {}).setdefault(client, deque())
        (line.appendleft if again else line.append)(_Entry(item, self._arrivals, again))
        self._waiting[client] += 1
        self._length += 1

    def first(self, allowed: Callable[[Item], bool] = lambda _: True) -> Item | None:
        """Return the item that `pop` would return, without removing it."""
        found = self._first(allowed)
        return found[2].item if found else None

    def pop(self, allowed: Callable[[Item], bool] = lambda _: True, without: Collection[str] = ()) -> Item | None:
        """Remove and return the item whose turn it is, or None.

        Where the first item of a priority is not `allowed`, the whole priority waits, so that smaller work does not overtake it
        for ever. Clients in `without` are skipped.
        """
        found = self._first(allowed, without)
        if found is None:
            return None
        priority, client, entry = found
        self._lines[priority][client].popleft()
        self._removed(priority, client, 1)
        self._level = self._had[client]
        # The floor never sinks: a client that is not above it starts there, so that its count can be forgotten.
        floor = self._floor()
        self._had = {name: had for name, had in self._had.items() if had > floor or name in self._waiting}
        return entry.item

    def charge(self, client: str, work: float) -> None:
        """Count work that was done for a client."""
        self._had[client] = self._lifted(client) + work

    def remove(self, item: Item, client: str, priority: int) -> None:
        """Remove an item, if it still waits."""
        line = self._lines.get(priority, {}).get(client, deque())
        kept = deque(entry for entry in line if entry.item is not item)
        if removed := len(line) - len(kept):
            self._lines[priority][client] = kept
            self._removed(priority, client, removed)

    def _first(
        self, allowed: Callable[[Item], bool], without: Collection[str] = ()
    ) -> tuple[int, str, _Entry[Item]] | None:
        for priority in sorted(self._lines):
            lines = {client: line for client, line in self._lines[priority].items() if client not in without}
            if not lines:
                continue
            client = min(lines, key=lambda name: (not lines[name][0].again, self._had[name], lines[name][0].arrival))
            entry = lines[client][0]
            if allowed(entry.item):
                return priority, client, entry
        return None

    def _lifted(self, client: str) -> float:
        """Return the service that a client has received, raised to the floor if it has nothing waiting."""
        had = self._had.get(client, 0.0)
        return had if client in self._waiting else max(had, self._floor())

    def _floor(self) -> float:
        """Return the least service that a waiting client has received; if none waits, that of the client served last."""
        return min((self._had[name] for name in self._waiting), default=self._level)

    def _removed(self, priority: int, client: str, count: int) -> None:
        self._length -= count
        self._waiting[client] -= count
        if not self._waiting[client]:
            del self._waiting[client]
        if not self._lines[priority][client]:
            del self._lines[priority][client]
        if not self._lines[priority]:
            del self._lines[priority]
