"""Score one answer: a row and what it adds to each metric."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from echovlm_edge.runtime.evaluation.asking.journal import Answer
from echovlm_edge.runtime.evaluation.data.rows import Row
from echovlm_edge.runtime.evaluation.schema import ScoredRow
from echovlm_edge.runtime.evaluation.scoring.catalogue import statistics_of
from echovlm_edge.runtime.evaluation.scoring.metric import Case, Scorer


def scored(row: Row, answer: Answer, images: Path, scoring: Sequence[Scorer]) -> ScoredRow:
    """Score an answer to a row, whose pictures are named below the folder `images` where they are in it."""
    case = Case(row.task, row.language, row.question, row.reference, answer.text)
    return ScoredRow(
        number=row.number,
        name=row.name,
        id=row.id,
        key=row.key,
        task=row.task,
        region=row.region,
        language=row.language,
        question=row.question,
        reference=row.reference,
        pictures=tuple(str(path.relative_to(images) if path.is_relative_to(images) else path) for path in row.pictures),
        answer=answer.text,
        finish=answer.finish,
        tokens=answer.tokens,
        not_sent=tuple(sorted(what.value for what in row.not_sent)),
        statistics=statistics_of(case, scoring),
    )
