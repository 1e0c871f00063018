"""Whose turn it is at the server: a policy without threads or calls.

The server opens a limited number of studies, which other clients need too. So the node opens only some of its own. Studies whose report
is owed come first, the latest complete one before the others, so that the patient who has just left the room does not wait behind a
backlog; then those that still receive, which are read ahead, the latest begun one first. A report that is owed takes the place of the
last in this order that nobody works on; reading ahead takes only places that are free, and leaves one call to reports.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from echovlm_edge.runtime.dicom_node.spool.rows import Study


@dataclass(frozen=True)
class Places:
    """What is in use, and how much of it there is.

    Attributes:
        open: ids of the studies that are open at the server.
        busy: ids of the studies that a thread works on.
        studies: that may be open at once.
        calls: studies that may be worked on at once.
    """

    open: frozenset[int]
    busy: frozenset[int]
    studies: int
    calls: int


@dataclass(frozen=True)
class Turn:
    """A study to work on now, and the id of the one that is ended at the server to make room for it, if any."""

    study: Study
    ends: int | None = None


def next_turn(owed: Sequence[Study], receiving: Sequence[Study], due: Collection[int], places: Places) -> Turn | None:
    """Choose the next study to work on.

    Args:
        owed: the studies whose report is owed.
        receiving: those that still receive.
        due: ids of the studies of both for which there is something to do now.
        places: what is in use.
    """
    ranked = [
        *sorted(owed, key=lambda study: study.changed, reverse=True),
        *sorted(receiving, key=lambda study: study.begun, reverse=True),
    ]
    free_calls = places.calls - len(places.busy)
    rank_of = {study.id: rank for rank, study in enumerate(ranked)}
    for rank, study in enumerate(ranked):
        is_owed = rank < len(owed)
        if study.id not in due or study.id in places.busy:
            continue
        if free_calls < (1 if is_owed or places.calls == 1 else 2):
            return None
        if study.id in places.open or len(places.open | places.busy) < places.studies:
            return Turn(study)
        behind = [id for id in places.open - places.busy if rank_of.get(id, len(ranked)) > rank]
        if is_owed and behind:
            return Turn(study, max(behind, key=lambda id: (rank_of.get(id, len(ranked)), id)))
    return None
