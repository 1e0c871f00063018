"""Remember the tokens of the model's own replies, within bounded memory, so that a later turn holds them and not its text's tokens.

A text can be tokenized in several ways, so that a reply's text alone would not lead back to the keys and values that were computed for
it. Each reply belongs to one scope and is found by that scope only, after the same prompt and by the same text.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.contracts.request import IDENTITY_BYTES, IDENTITY_KEY
from echovlm_edge.runtime.resources.fair_memory import FairMemory

MAX_BYTES = 4 << 20  # of all replies: some 1,500 reports
ENTRY_BYTES = 400  # of one besides its tokens: keys and containers

Tokens = Sequence[int] | NDArray[np.int64]


class Replies:
    """Tokens of replies by scope, prompt and text. Any thread may use it."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        """Start empty; the least recently used replies of the scope that holds most are dropped first."""
        self._memory: FairMemory[bytes] = FairMemory(max_bytes)
        self._tokens: dict[bytes, NDArray[np.int32]] = {}
        self._lock = threading.Lock()

    def find(self, scope: str, prompt_ids: Tokens, text: str) -> list[int] | None:
        """Return the tokens of a reply, without its stop token; None if it is no reply to this prompt, or was dropped."""
        key = _key(scope, prompt_ids, text)
        with self._lock:
            found = self._tokens.get(key)
            if found is None:
                return None
            self._memory.touch(key)
            return [int(token) for token in found]

    def put(self, scope: str, prompt_ids: Tokens, text: str, tokens: Sequence[int]) -> None:
        """Remember a reply's tokens, without its stop token, if `FairMemory` has room for them."""
        key, held = _key(scope, prompt_ids, text), np.array(tokens, np.int32)
        size = held.nbytes + ENTRY_BYTES
        with self._lock:
            if key in self._tokens:
                self._memory.remove(key)
                del self._tokens[key]
            if not self._memory.takes(scope, size):
                return
            self._tokens[key] = held
            for displaced in self._memory.add(scope, key, size):
                del self._tokens[displaced]


def _key(scope: str, prompt_ids: Tokens, text: str) -> bytes:
    """Hash what a reply is found by; images are in the prompt by their sizes only, which suffices to find it again."""
    digest = blake2b(blake2b(scope.encode()).digest(), key=IDENTITY_KEY, digest_size=IDENTITY_BYTES)
    digest.update(blake2b(np.asarray(prompt_ids, np.int64).tobytes()).digest())
    digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.digest()
