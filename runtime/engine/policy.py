"""Decide which sequence is next on the decoder: rules over plain values, which the scheduler carries out.

Together with `FairQueue` (which client is next) and `Parking` (how many batch sequences may have slots), these are all of the
scheduler's decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from echovlm_edge.runtime.bundle.manifest import PREFILL_CHUNK
from echovlm_edge.runtime.contracts.request import Priority
from echovlm_edge.runtime.engine.reuse import BLOCK
from echovlm_edge.runtime.engine.turn_time import TurnTime

CHUNK = PREFILL_CHUNK  # tokens of a prompt that are prefilled at once while nobody waits for a token
ROWS_AT_FIRST = 32  # while others wait, until it is known what a row takes
SLOWER_BESIDE_PROMPTS = 3.0  # times a turn without a prompt; measured: a prompt's first token comes as early as with chunks of 64
# While other sequences decode, background gets one chunk per this many decode steps.
BACKGROUND_EVERY = 8


class Standing(Protocol):
    """What the rules need to know about a sequence that has a slot."""

    @property
    def priority(self) -> Priority:
        """Its priority."""
        ...

    @property
    def joined(self) -> float:
        """When it first got a slot; only the order counts."""
        ...

    @property
    def filled(self) -> int:
        """Tokens in its cache."""
        ...

    @property
    def target(self) -> int:
        """Tokens that have to be prefilled."""
        ...

    @property
    def decoding(self) -> bool:
        """Whether it is prefilled and gains one token per step."""
        ...


Member = TypeVar("Member", bound=Standing)


def next_to_prefill(running: Sequence[Member], steps: int) -> Member | None:
    """Choose the sequence whose chunk is prefilled next: foreground by priority, then by age; background if there is none.

    While other sequences decode, background gets one chunk after every BACKGROUND_EVERY decode steps; `steps` is their number so far.
    """
    prefilling = [member for member in running if not member.decoding]
    foreground = [member for member in prefilling if member.priority is not Priority.BACKGROUND]
    if foreground:
        return min(foreground, key=lambda member: (member.priority, member.joined))
    others_decode = len(running) > len(prefilling)
    if not prefilling or (others_decode and steps % BACKGROUND_EVERY):
        return None
    return prefilling[0]


def chunk_end(member: Standing, running: Iterable[Standing], rows: int) -> int:
    """Return how many tokens are in a sequence's cache after its next chunk: up to `rows` more while others wait, else CHUNK.

    Chunks end at multiples of BLOCK, or at the target: kernels for attention that are not our own give a token other bits where
    chunks begin elsewhere.
    """
    others_wait = any(
        other.decoding or other.priority is not Priority.BACKGROUND for other in running if other is not member
    )
    size = max(1, min(rows, CHUNK) // BLOCK) * BLOCK if others_wait else CHUNK
    return min(member.filled // BLOCK * BLOCK + size, member.target)


def rows_beside(written: int, time: TurnTime, most_seconds: float | None) -> int:
    """Return how many rows of a prompt a turn may have beside `written` tokens of others.

    Args:
        written: how many sequences get a token in this turn.
        time: what turns have taken.
        most_seconds: what a turn may take; by default SLOWER_BESIDE_PROMPTS times what it takes without a prompt.
    """
    if most_seconds is None:
        most_seconds = SLOWER_BESIDE_PROMPTS * time.of(max(1, written))
    rows = time.rows_within(most_seconds)
    return ROWS_AT_FIRST if rows is None else max(0, rows - written)


def preemptible(running: Iterable[Member], priority: Priority, can_park: Callable[[Member], bool]) -> list[Member]:
    """List the running sequences that a waiting one of `priority` may preempt, in the order in which to try them.

    Every other priority preempts background; what background has computed stays cached as a prefix. Interactive preempts batch if
    the batch sequence can be parked. The least urgent sequence is first, and among equally urgent ones the youngest.
    """
    lower = [
        member
        for member in running
        if priority < member.priority
        and (member.priority is Priority.BACKGROUND or (priority is Priority.INTERACTIVE and can_park(member)))
    ]
    return sorted(lower, key=lambda member: (member.priority, member.joined), reverse=True)


def moves(decoding: Iterable[int]) -> list[tuple[int, int]]:
    """Plan how to move the sequences in the slots `decoding` into the first slots: pairs of source and target slot.

    Sequences that are in the first slots already stay. A sequence that occupies a target slot goes to the source slot.
    """
    taken = set(decoding)
    free = [slot for slot in range(len(taken)) if slot not in taken]
    return list(zip(sorted((slot for slot in taken if slot >= len(taken)), reverse=True), free, strict=True))
