"""Decide which sequence is next on the decoder: rules over plain values, which the scheduler carries out.

Together with `FairQueue` (which client is next) and `Parking` (how many batch sequences may have slots), these are all of the
scheduler's decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from echovlm_edge.runtime.bundle.manifest import PREFILL_CHUNK
from echovlm_edge.runtime.contracts.request import Priority
from echovlm_edge.runtime.engine.caching.reuse import BLOCK
from echovlm_edge.runtime.engine.scheduling.turn_time import TurnTime

CHUNK = PREFILL_CHUNK  # tokens of a prompt that are prefilled at once while nobody waits for a token
ROWS_AT_FIRST, ROWS_AT_LEAST = (
    32,
    4,
)  # while others wait: until it is known what a row takes, and however little time there is
# Writers wait little more than half as long as for a step and a chunk of 64, and a prompt's first token comes 5 to 10 % later.
TURN_SHARE = 0.58
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
        """Whether it is prefilled and gains tokens with every step."""
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


def chunks(running: Sequence[Member], steps: int, rows: int) -> list[tuple[Member, int]]:
    """Choose the prompts that the next turn reads, in the order of `next_to_prefill`: pairs of a sequence and its chunk's end.

    They have `rows` tokens in all while others wait, else CHUNK. Background is read alone.
    """
    chosen: list[tuple[Member, int]] = []
    following = next_to_prefill(running, steps)
    left = rows if following and _others_wait(following, running) else CHUNK
    while following and left > 0:
        end = min(following.filled + min(left, CHUNK), following.target)
        chosen.append((following, end))
        left -= end - following.filled
        taken = [member for member, _ in chosen]
        rest = [member for member in running if member not in taken and member.priority is not Priority.BACKGROUND]
        following = next_to_prefill(rest, steps) if following.priority is not Priority.BACKGROUND else None
    return chosen


def chunk_in_blocks(running: Sequence[Member], steps: int, rows: int) -> list[tuple[Member, int]]:
    """Choose as `chunks` does, one prompt only, whose chunks end at multiples of BLOCK or at the target.

    Kernels that are not our own give a token other bits where chunks begin elsewhere.
    """
    member = next_to_prefill(running, steps)
    if member is None:
        return []
    size = max(BLOCK, min(rows, CHUNK)) if _others_wait(member, running) else CHUNK
    return [(member, min((member.filled + size) // BLOCK * BLOCK, member.target))]


def _others_wait(member: Standing, running: Iterable[Standing]) -> bool:
    """Return whether others wait for a token, or for their prompts to be read."""
    return any(other.decoding or other.priority is not Priority.BACKGROUND for other in running if other is not member)


def rows_beside(written: int, time: TurnTime, most_seconds: float | None) -> int:
    """Return how many rows of a prompt a turn may have in which `written` sequences get a token.

    Args:
        written: sequences that get a token.
        time: what turns have taken.
        most_seconds: what a turn may take; by default TURN_SHARE of what a step and a chunk of 64 would take one after the other.
    """
    if time.step is None or not time.row:
        return ROWS_AT_FIRST
    if most_seconds is None:
        # Both read the weights, which a turn reads once: the chunk alone takes what the step does, and its further rows.
        most_seconds = TURN_SHARE * (2 * time.step + max(0, 64 - written) * time.row)
    return max(ROWS_AT_LEAST, int((most_seconds - time.step) / time.row))


def mask_work(seconds: float, step: float | None) -> float:
    """Return how many tokens a form's masks count as that took so many seconds of a processor: the steps that take as long.

    Args:
        seconds: of a processor.
        step: seconds of a step, None as long as that is not known: then nothing is counted.
    """
    return seconds / step if step else 0.0


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
