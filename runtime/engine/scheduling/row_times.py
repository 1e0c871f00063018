"""Measure what decoder calls of some numbers of rows take, on slots that no sequence has yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, cycle, islice
from time import perf_counter

import numpy as np

from echovlm_edge.runtime.backends import Backend, SlotCache, SlotRows
from echovlm_edge.runtime.drafting.row_cost import RowCost
from echovlm_edge.runtime.prompting.rotary import MultimodalRotary

ROWS = 1, 8, 2, 4, 16, 3, 6, 12  # the most telling first
ROUNDS = 10  # measurements of each
SECONDS = 1.0  # in all, after the first two sizes were run twice; a call that has begun is waited for


def measure_rows(
    backend: Backend, rotary: MultimodalRotary, slots: Sequence[SlotCache], closed: Callable[[], bool]
) -> RowCost:
    """Run calls on the first positions of `slots`, the tokens of each as many, in turn until no time is left.

    The fastest of each size counts: other work on the machine only adds, and engines initialize in the first. `closed()` ends it early.
    """
    began, fastest = perf_counter(), dict[int, float]()
    sizes = [parts for rows in ROWS if (parts := _parts(backend, rotary, slots, rows))]
    at_least = 2 * sizes[:2]  # the first calls also read the weights from disk: alone they would make rows look free
    for done, parts in enumerate(islice(chain(at_least, cycle(sizes)), ROUNDS * len(sizes)), 1):
        started = perf_counter()
        backend.turn(parts)
        now, rows = perf_counter(), sum(part.tokens for part in parts)
        fastest[rows] = min(now - started, fastest.get(rows, now - started))
        if closed() or (done >= len(at_least) and now - began > SECONDS):
            break
    for part in max(sizes, key=len):
        part.slot.clear(max(ROWS))
    return RowCost(fastest)


def _parts(backend: Backend, rotary: MultimodalRotary, slots: Sequence[SlotCache], rows: int) -> list[SlotRows] | None:
    """Divide rows among as few slots as take them in one call; None if none do."""
    for sequences in range(1, len(slots) + 1):
        tokens, rest = divmod(rows, sequences)
        if not rest and tokens <= min(backend.step_tokens(sequences), slots[0].max_sequence - 1):
            embeddings = backend.embed(np.arange(tokens))  # experts are chosen by token
            angles = rotary.angles(np.tile(np.arange(tokens), (3, 1)))
            return [SlotRows(slot, 0, embeddings, angles, logits=tokens) for slot in slots[:sequences]]
    return None
