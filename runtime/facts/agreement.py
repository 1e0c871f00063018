"""Compare the facts of two reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from echovlm_edge.runtime.facts.values import Fact, Facts, Kind

SIZE_TOLERANCE = 0.2  # of the reference's size: what two observers may differ by


@dataclass(frozen=True)
class Counts:
    """Facts of one kind.

    Attributes:
        asked: in the reference.
        right: of these, also in the candidate.
        invented: in the candidate, and not in the reference.
    """

    asked: int = 0
    right: int = 0
    invented: int = 0


@dataclass(frozen=True)
class Agreement:
    """How a candidate's facts agree with a reference's, by kind; every kind is a key."""

    by_kind: Mapping[Kind, Counts]


def agreement(reference: Facts, candidate: Facts) -> Agreement:
    """Pair each fact of the reference with at most one of the candidate: of equal value, or a size within `SIZE_TOLERANCE`.

    Organ and side must agree where both facts have them. The closest pairs are made first: equal places before places of which one
    leaves something out, smaller differences of size before larger ones. Takes time in the product of the numbers of facts.
    """
    return Agreement({kind: _counts(list(reference.of(kind)), list(candidate.of(kind))) for kind in Kind})


def _counts(asked: list[Fact], given: list[Fact]) -> Counts:
    pairs = sorted(
        (distance, one, other)
        for one, fact in enumerate(asked)
        for other, found in enumerate(given)
        if (distance := _distance(fact, found)) is not None
    )
    matched, used = set[int](), set[int]()
    for _, one, other in pairs:
        if one not in matched and other not in used:
            matched.add(one)
            used.add(other)
    return Counts(len(asked), len(matched), len(given) - len(used))


def _distance(fact: Fact, found: Fact) -> tuple[int, float] | None:
    """Return how far apart two facts are that may be the same; None if they are not."""
    places = ((fact.organ, found.organ), (fact.side, found.side))
    if any(one and other and one is not other for one, other in places):
        return None
    left_out = sum(one is not other for one, other in places)
    if isinstance(fact.value, float) and isinstance(found.value, float):
        difference = abs(found.value - fact.value)
        return (left_out, difference) if difference <= SIZE_TOLERANCE * fact.value else None
    return (left_out, 0.0) if fact.value == found.value else None
