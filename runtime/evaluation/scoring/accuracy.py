"""Accuracy of judgements and choices; an answer that says neither is wrong, and counted apart too."""

from __future__ import annotations

from collections.abc import Mapping

from echovlm_edge.runtime.evaluation.data.recognition import RowTask
from echovlm_edge.runtime.evaluation.scoring.closed_answers import read_closed
from echovlm_edge.runtime.evaluation.scoring.metric import Case, Metric, Statistics, mean_of

TASKS = {RowTask.JUDGE: "judgements", RowTask.CHOICE: "choices"}


class Accuracy:
    """Compares what the answer and the reference say, see `closed_answers`."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Accuracy of each closed task, and the share of rows without an answer."""
        rule = "rules of docs/evaluation.md"
        return (
            *(
                Metric(
                    f"accuracy_{task.value}",
                    f"accuracy, {words}",
                    "accuracy",
                    "share",
                    f"right answers by the {rule}; none counts as wrong",
                    headline=True,
                )
                for task, words in TASKS.items()
            ),
            *(
                Metric(
                    f"unanswered_{task.value}",
                    f"unanswered, {words}",
                    "accuracy",
                    "share",
                    f"answers in which the {rule} find none",
                    more_is_better=False,
                )
                for task, words in TASKS.items()
            ),
        )

    def score(self, case: Case) -> Mapping[str, Statistics]:
        """Score an answer."""
        if case.task not in TASKS:
            return {}
        said = read_closed(case.task, case.answer, case.question)
        right = said is not None and said == read_closed(case.task, case.reference, case.question)
        name = case.task.value
        return {f"accuracy_{name}": mean_of(float(right)), f"unanswered_{name}": mean_of(float(said is None))}
