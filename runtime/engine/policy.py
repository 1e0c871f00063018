"""Who goes next on the decoder: rules over plain values, which the scheduler carries out.

With `FairQueue` (whose turn it is) and `Parking` (how much batch work may have slots), these are all of its decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from echovlm_edge.runtime.backends import PREFILL_CHUNK
from echovlm_edge.runtime.contracts.request import Priority
from echovlm_edge.runtime.engine.reuse import BLOCK

# Tokens prefilled at once: alone, and while others wait for their next token.
CHUNK, CHUNK_BESIDE_OTHERS = PREFILL_CHUNK, 64
# While reports are prefilled or decoded, a study's frames get a chunk after so many steps.
BACKGROUND_EVERY = 8


class Standing(Protocol):
    """Where a sequence that has a slot stands."""

    @property
    def priority(self) -> Priority:
        """Who goes first."""
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
        """Tokens to be prefilled."""
        ...

    @property
    def decoding(self) -> bool:
        """Whether it is prefilled, and gains a token a step."""
        ...


Member = TypeVar("Member", bound=Standing)


def next_to_prefill(running: Sequence[Member], steps: int) -> Member | None:
    """Choose whose chunk comes next: foreground by priority, then by age; background where nobody else wants the decoder.

    Beside sequences that decode, background gets its chunk after every BACKGROUND_EVERY of the `steps` made so far.
    """
    prefilling = [member for member in running if not member.decoding]
    foreground = [member for member in prefilling if member.priority is not Priority.BACKGROUND]
    if foreground:
        return min(foreground, key=lambda member: (member.priority, member.joined))
    others_decode = len(running) > len(prefilling)
    if not prefilling or (others_decode and steps % BACKGROUND_EVERY):
        return None
    return prefilling[0]


def chunk_end(member: Standing, running: Iterable[Standing]) -> int:
    """Count the tokens that are in a sequence's cache after its next chunk.

    Chunks end at multiples of BLOCK, or at the target, so that a token's bits do not depend on where chunks begin.
    """
    others_wait = any(
        other.decoding or other.priority is not Priority.BACKGROUND for other in running if other is not member
    )
    size = CHUNK_BESIDE_OTHERS if others_wait else CHUNK
    return min(member.filled // BLOCK * BLOCK + size, member.target)


def givers(running: Iterable[Member], priority: Priority, can_park: Callable[[Member], bool]) -> list[Member]:
    """List the sequences that a waiting one of `priority` may take a slot from, the first to be asked first.

    Background gives way to all others, and loses nothing that is not kept as a prefix. Batch gives way to interactive work where
    it can be parked. Of those, the least urgent and youngest goes first.
    """
    lower = [
        member
        for member in running
        if priority < member.priority
        and (member.priority is Priority.BACKGROUND or (priority is Priority.INTERACTIVE and can_park(member)))
    ]
    return sorted(lower, key=lambda member: (member.priority, member.joined), reverse=True)


def moves(decoding: Iterable[int]) -> list[tuple[int, int]]:
    """Plan how sequences in the slots `decoding` come to stand in the first ones: pairs of the slot to leave and the one to take.

    Those that are there already stay; what stands in a slot that is taken changes places with who comes.
    """
    taken = set(decoding)
    free = [slot for slot in range(len(taken)) if slot not in taken]
    return list(zip(sorted((slot for slot in taken if slot >= len(taken)), reverse=True), free, strict=True))
