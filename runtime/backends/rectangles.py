"""Group a turn's rows into rectangles, for a decoder that takes equally many tokens of adjacent slots in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from echovlm_edge.runtime.backends import Floats, SlotRows
from echovlm_edge.runtime.prompting.rotary import Angles


def rectangles(rows: Sequence[SlotRows], number: Callable[[SlotRows], int], longest: int) -> list[list[SlotRows]]:
    """Group what one call takes: equally many tokens, at most `longest`, of adjacent slots; or any tokens of one.

    Args:
        rows: a turn's.
        number: gives a slot's place among the slots.
        longest: the most tokens of each of several sequences.
    """
    groups: list[list[SlotRows]] = []
    for part in rows:
        before = groups[-1][-1] if groups else None
        length = len(part.embeddings)
        if before and length == len(before.embeddings) <= longest and number(part) == number(before) + 1:
            groups[-1].append(part)
        else:
            groups.append([part])
    return groups


def join(rows: Sequence[SlotRows]) -> tuple[Floats, Angles]:
    """Stack b sequences' s tokens: embeddings [b, s, hidden_size] and angles."""
    cos, sin = (np.stack([getattr(part.angles, name) for part in rows]) for name in ("cos", "sin"))
    return np.stack([part.embeddings for part in rows]), Angles(cos, sin)
