"""The memory model counts a text's own phrases by the token: a text that never says a thing twice takes no more."""

from __future__ import annotations

import tracemalloc

from echovlm_edge.runtime.drafting.own_text import TOKEN_BYTES, OwnText


def test_a_text_that_never_repeats_itself_takes_what_is_counted() -> None:
    texts = [list(range(1000 + 10_000 * number, 1000 + 10_000 * number + 8192)) for number in range(2)]
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    kept = []
    for text in texts:
        kept.append(OwnText())
        for count, token in enumerate(text, 1):
            kept[-1].append(token)
            if count >= 1024 and count % 256 == 0:
                whole = (len(kept) - 1) * len(text) + count
                assert tracemalloc.get_traced_memory()[0] - before <= whole * TOKEN_BYTES
    tracemalloc.stop()
