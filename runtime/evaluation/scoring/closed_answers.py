"""Read the answer to a row of a closed task."""

from __future__ import annotations

from echovlm_edge.runtime.evaluation.data.recognition import RowTask
from echovlm_edge.runtime.facts.closed_answers import options_of, read_choice, read_judgement


def read_closed(task: RowTask, text: str, question: str) -> str | None:
    """Read the answer to a question of a closed task: a truth value or a letter."""
    return read_judgement(text) if task is RowTask.JUDGE else read_choice(text, options_of(question))
