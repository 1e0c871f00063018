"""Decide how many tokens to draft for each of the sequences in a step: as long as a further row promises more than it costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Protocol

from echovlm_edge.runtime.drafting.row_cost import RowCost

SLOWEST = 0.92  # of the pace that a sequence has without drafts: nobody's is expected to fall below
LEAST = 0.05  # no guess pays that is less likely


class Guesses(Protocol):
    """The guesses about one sequence's next tokens, each after those before."""

    def guess(self, least: float) -> float | None:
        """Guess one more token; returns the probability that it is accepted with all before it, None if that is below `least`."""
        ...


Shape = Callable[[Sequence[int]], int]  # from the tokens drafted for each sequence to the rows of their step


def packed(drafted: Sequence[int]) -> int:
    """Return the rows of a step that has those that it needs."""
    return len(drafted) + sum(drafted)


def padded(drafted: Sequence[int]) -> int:
    """Return the rows of a step that has as many for each sequence."""
    return len(drafted) * (1 + max(drafted))


def plan(guesses: Sequence[Guesses], beside: int, cost: RowCost, rows: Shape, most: Sequence[int]) -> list[int]:
    """Choose how many of the guesses to verify: the likeliest first, as many as make for the most tokens a second.

    Each sequence gets its next token anyway, and one for every drafted token that is accepted. No draft makes a step longer than
    those that were measured: on a busy machine, what lies beyond may be far from the line through them.

    Args:
        guesses: each sequence's, at least one.
        beside: rows of prompts in the same call.
        cost: of a call by its rows.
        rows: of a step by what is drafted.
        most: tokens that may be drafted for each.

    Returns:
        The tokens to draft for each.
    """
    sequences = len(guesses)
    alone = cost(beside + sequences)
    pace = sequences / alone
    least = max(LEAST, pace * cost.least_step(beside + sequences))
    likeliest = list[tuple[float, int]]()
    for index, one in enumerate(guesses):
        if most[index] > 0 and (probability := one.guess(least)) is not None:
            heappush(likeliest, (-probability, index))
    if not likeliest:
        return [0] * sequences
    drafted, gained = [0] * sequences, [0.0] * sequences
    chosen, kept = list[int](), 0
    while likeliest:
        unlikely, index = heappop(likeliest)
        drafted[index] += 1
        if rows(drafted) > cost.most:
            drafted[index] -= 1
            continue
        chosen.append(index)
        gained[index] -= unlikely
        seconds = cost(beside + rows(drafted))
        gains_least = 0.0 if beside else min(gained)
        if (sequences + sum(gained)) / seconds > pace and (1 + gains_least) * alone >= SLOWEST * seconds:
            pace, kept = (sequences + sum(gained)) / seconds, len(chosen)
        if drafted[index] < most[index] and (probability := guesses[index].guess(least)) is not None:
            heappush(likeliest, (-probability, index))
    counts = Counter(chosen[:kept])
    return [counts[index] for index in range(sequences)]
