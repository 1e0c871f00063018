"""Remember the phrases of each client's finished replies, within bounded memory: what one report says, the next often says too.

Each scope's phrases are found by that scope only, see `reuse`: neither a text nor its pace reveals what others' reports say.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.drafting.guess import Phrases
from echovlm_edge.runtime.drafting.phrase_counts import ORDERS
from echovlm_edge.runtime.drafting.phrase_table import ENTRY, PhraseTable
from echovlm_edge.runtime.resources.fair_memory import FairMemory
from echovlm_edge.runtime.resources.thread_priority import lower_thread_priority

MOST_REPLIES = 256  # of a scope: a table of them is built within tens of milliseconds
REBUILT_AFTER = 8  # a table is built again once there is one new reply for so many that it has
TOKEN_BYTES = 4 + ORDERS * ENTRY  # of one token, with its phrases
REPLY_BYTES = 400  # of a reply besides


@dataclass(eq=False)
class _Scope:
    """One scope's replies by their numbers, its table, of how many replies that is, and how many are in no table yet."""

    replies: dict[int, NDArray[np.int32]] = field(default_factory=dict, repr=False)
    table: PhraseTable | None = field(default=None, repr=False)
    built: int = 0
    new: int = 0


class ReplyPhrases:
    """Phrases of replies by scope. Any thread may use it; a thread of its own builds the tables."""

    def __init__(self, max_bytes: int) -> None:
        """Start empty; the oldest replies of the scope that holds most are dropped first. `max_bytes` 0 keeps nothing."""
        self._memory: FairMemory[tuple[str, int]] = FairMemory(max_bytes)
        self._scopes: dict[str, _Scope] = {}
        self._count = 0
        self._lock = threading.Lock()
        self._builder = ThreadPoolExecutor(1, "phrases", initializer=lower_thread_priority)

    @property
    def bytes(self) -> int:
        """The memory of all replies and their phrases."""
        return self._memory.bytes

    def of(self, scope: str) -> Phrases | None:
        """Return the phrases of a scope's replies; None if there are none yet."""
        with self._lock:
            return held.table if (held := self._scopes.get(scope)) else None

    def put(self, scope: str, tokens: Sequence[int]) -> None:
        """Remember a finished reply's tokens, if `FairMemory` has room for them."""
        size = len(tokens) * TOKEN_BYTES + REPLY_BYTES
        with self._lock:
            if not self._memory.takes(scope, size):
                return
            held = self._scopes.setdefault(scope, _Scope())
            self._count += 1
            held.replies[self._count] = np.array(tokens, np.int32)
            held.new += 1
            for displaced in self._memory.add(scope, (scope, self._count), size):
                self._drop(*displaced)
            if len(held.replies) > MOST_REPLIES:
                oldest = next(iter(held.replies))
                self._memory.remove((scope, oldest))
                self._drop(scope, oldest)
            due = held.new * REBUILT_AFTER >= len(held.replies)
        if due:
            self._builder.submit(self._build, scope)

    def _build(self, scope: str) -> None:
        with self._lock:
            held = self._scopes.get(scope)
            if held is None or not held.new:  # dropped meanwhile, or built already
                return
            replies, held.new = [reply.tolist() for reply in held.replies.values()], 0
        table = PhraseTable.build(replies, least_texts=1)
        with self._lock:
            held.table, held.built = table, len(replies)

    def _drop(self, scope: str, number: int) -> None:
        held = self._scopes[scope]
        del held.replies[number]
        if not held.replies:
            del self._scopes[scope]
        elif (
            2 * len(held.replies) < held.built
        ):  # others' replies took the room: its table would outlive what it was made of
            held.table, held.built, held.new = None, 0, len(held.replies)
