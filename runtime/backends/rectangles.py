"""Group a turn's rows into rectangles, for a decoder that takes equally many tokens of adjacent slots in one call.

Where one sequence's draft is shorter than another's, rows without a token follow its own: their keys and values lie behind its end,
where its next tokens overwrite them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import count

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.backends import Floats, Logits, SlotRows
from echovlm_edge.runtime.prompting.rotary import Angles


def rectangles(rows: Sequence[SlotRows], number: Callable[[SlotRows], int], longest: int) -> list[list[SlotRows]]:
    """Group what one call takes: at most `longest` tokens of adjacent slots, padded to as many; or any tokens of one.

    Args:
        rows: a turn's.
        number: gives a slot's place among the slots.
        longest: the most tokens of each of several sequences.
    """
    groups: list[list[SlotRows]] = []
    for part in rows:
        group = groups[-1] if groups else []
        if group and number(part) == number(group[-1]) + 1 and _fit([*group, part], longest):
            group.append(part)
        else:
            groups.append([part])
    return groups


def _fit(group: Sequence[SlotRows], longest: int) -> bool:
    """Return whether one call takes them; padding never reaches a slot's last position, see `GpuBackend`."""
    length = most_tokens(group)
    return length <= longest and all(
        part.tokens == length or part.past + length < part.slot.max_sequence for part in group
    )


def most_tokens(rows: Sequence[SlotRows]) -> int:
    """Return how many tokens the longest part has."""
    return max(part.tokens for part in rows)


def logit_rows(rows: Sequence[SlotRows], length: int) -> NDArray[np.int64]:
    """Return which rows of [b, length] the logits are wanted of, the parts' one after another; int64 [sum of `SlotRows.logits`]."""
    return np.concatenate([number * length + part.logit_rows for number, part in enumerate(rows)])


def split(logits: Logits, rows: Sequence[SlotRows]) -> list[list[Logits]]:
    """Divide logits [sum of `SlotRows.logits`, vocab_size] among the parts, row by row."""
    places = count()
    return [[logits[next(places)] for _ in range(part.logits)] for part in rows]


def join(rows: Sequence[SlotRows]) -> tuple[Floats, Angles]:
    """Stack b sequences' up to s tokens, shorter ones padded with zeros: embeddings [b, s, hidden_size] and angles."""
    length = most_tokens(rows)

    def stacked(arrays: Iterable[Floats]) -> Floats:
        return np.stack([np.pad(array, ((0, length - len(array)), (0, 0))) for array in arrays])

    cos, sin = (stacked(getattr(part.angles, name) for part in rows) for name in ("cos", "sin"))
    return stacked(part.embeddings for part in rows), Angles(cos, sin)
