"""The eviction policy of a bounded cache: evict from the scope that holds the most, its least recently used entry first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class FairMemory(Generic[Key]):
    """Accounts for the entries of all scopes in one memory budget. Not safe for concurrent use: its owner holds a lock.

    A scope can evict other scopes' entries while it holds less than they do; otherwise only to make room for its newest entry. So that
    this one entry cannot take the whole budget, an entry larger than half of it is accepted only if no other scope holds anything.
    """

    def __init__(self, max_bytes: int) -> None:
        """Start empty; `max_bytes` 0 accepts nothing."""
        self._max_bytes = max_bytes
        self._scopes: dict[Key, str] = {}
        self._sizes: dict[str, OrderedDict[Key, int]] = {}  # by scope; the last used at the end, none is empty
        self._held: dict[str, int] = {}  # bytes by scope
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._scopes)

    def __contains__(self, key: Key) -> bool:
        return key in self._scopes

    def takes(self, scope: str, size: int) -> bool:
        """Check whether `add` accepts an entry of `size` bytes for this scope."""
        alone = not (self._held.keys() - {scope})
        return 0 < size <= (self._max_bytes if alone else self._max_bytes // 2)

    def add(self, scope: str, key: Key, size: int) -> list[Key]:
        """Add an entry; returns the keys of the entries to evict."""
        assert key not in self._scopes and self.takes(scope, size)
        self._scopes[key] = scope
        self._sizes.setdefault(scope, OrderedDict())[key] = size
        self._held[scope] = self._held.get(scope, 0) + size
        self.bytes += size
        displaced = list[Key]()
        while self.bytes > self._max_bytes:
            having_older = (name for name, sizes in self._sizes.items() if name != scope or len(sizes) > 1)
            largest = max(having_older, key=self._held.__getitem__)
            oldest = next(iter(self._sizes[largest]))
            self.remove(oldest)
            displaced.append(oldest)
        return displaced

    def touch(self, key: Key) -> None:
        """Mark an entry as its scope's most recently used."""
        self._sizes[self._scopes[key]].move_to_end(key)

    def remove(self, key: Key) -> None:
        """Remove an entry from the account."""
        scope = self._scopes.pop(key)
        size = self._sizes[scope].pop(key)
        self._held[scope] -= size
        self.bytes -= size
        if not self._sizes[scope]:
            del self._sizes[scope], self._held[scope]
