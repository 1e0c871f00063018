"""Make evaluations with everything in them, without a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from echovlm_edge.runtime.contracts.request import Sampling
from echovlm_edge.runtime.evaluation.asking.journal import Answer
from echovlm_edge.runtime.evaluation.data.rows import Row, read_rows
from echovlm_edge.runtime.evaluation.figures import figures
from echovlm_edge.runtime.evaluation.notes import notes
from echovlm_edge.runtime.evaluation.schema import VERSION, Evaluation, ModelFacts, Settings, SkippedRow
from echovlm_edge.runtime.evaluation.scored import scored
from echovlm_edge.runtime.evaluation.scoring.catalogue import metrics_of, scorers
from tests.support.evaluation_data import write_mixed

SKIPPED = (SkippedRow(99, "data.json, row 99 (<b>none</b>)", "has no words in its answer"),)


def worsened(row: Row) -> str:
    """An answer that is as the reference for every third row, and lacks something for the others."""
    return row.reference if row.number % 3 == 0 else row.reference[: -(1 + row.number % 5)]


def evaluated(folder: Path, count: int, answer: Callable[[Row], str] = worsened, name: str = "demo") -> Evaluation:
    """Evaluate answers that a function gives to rows of every kind, whose pictures are written below the folder."""
    rows, _ = read_rows([write_mixed(folder, count)], folder)
    scoring, sampling = scorers(), Sampling()
    rows_scored = tuple(scored(row, _answered(row, answer(row)), folder, scoring) for row in rows)
    metrics = metrics_of(scoring)
    return Evaluation(
        "echovlm-evaluate",
        VERSION,
        "2026-01-01T00:00:00+00:00",
        "in process",
        ("data.json",),
        Settings(ModelFacts(name, "0123456789abcdef", "cpu", "int4"), 512, 0.0, 0, 1.0, 1.0, 0),
        metrics,
        figures(rows_scored, metrics),
        rows_scored,
        SKIPPED,
        notes(rows_scored, SKIPPED, sampling),
    )


def _answered(row: Row, text: str) -> Answer:
    return Answer(text, "length" if row.number == 1 else "stop", len(text))
