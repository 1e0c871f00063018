"""Compare two evaluations over the rows that both have, by a paired bootstrap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.evaluation.figures import ALL, Difference, Pair, differences, groups_of
from echovlm_edge.runtime.evaluation.notes import counted
from echovlm_edge.runtime.evaluation.schema import Evaluation
from echovlm_edge.runtime.evaluation.scoring.metric import Metric

HOW_TO_READ = (
    "Better or worse: the whole 95 % interval of the difference is on one side of zero. The intervals of all figures hold at once, "
    "over resamples of the rows that both runs have."
)


@dataclass(frozen=True)
class Comparison:
    """What differs between two runs.

    Attributes:
        before: the first run's label.
        after: the second run's.
        pairs: each shared row as both answered it.
        by_group: differences by group: of all rows every metric, of the others the headlines.
        notes: what a reader must know, a sentence each.
    """

    before: str
    after: str
    pairs: tuple[Pair, ...]
    by_group: Mapping[str, tuple[Difference, ...]]
    notes: tuple[str, ...]

    @property
    def all_rows(self) -> tuple[Difference, ...]:
        """The differences over all shared rows."""
        return self.by_group.get(ALL, ())

    @property
    def worse(self) -> tuple[Difference, ...]:
        """What is worse for certain, in any group."""
        return tuple(one for found in self.by_group.values() for one in found if one.verdict == "worse")

    @property
    def summary(self) -> str:
        """Sum up in a sentence."""
        verdicts = [one.verdict for one in self.all_rows]
        better, worse = verdicts.count("better"), verdicts.count("worse")
        found = (
            f"{counted(better, 'figure')} better, {worse:,} worse"
            if better or worse
            else "no figure differs significantly"
        )
        return f"{self.after} compared with {self.before} over {counted(len(self.pairs), 'shared row')}: {found} (of {len(verdicts):,})."


def compare(before: Evaluation, after: Evaluation, labels: tuple[str, str]) -> Comparison:
    """Compare two evaluations.

    Raises:
        InvalidInput: they share fewer than two rows.
    """
    first = {row.key: row for row in before.rows}
    pairs = tuple((first[row.key], row) for row in after.rows if row.key in first)
    if len(pairs) < 2:
        raise InvalidInput(
            f"{labels[0]} and {labels[1]} share {counted(len(pairs), 'row')} (the same id, question, pictures and reference): compare runs "
            "over the same data."
        )
    grouped: dict[str, list[Pair]] = {}
    for pair in pairs:
        for group in groups_of(pair[1]):
            grouped.setdefault(group, []).append(pair)
    found = differences(grouped, _shared(before, after), lambda metric, group: group == ALL or metric.headline)
    by_group = {group: tuple(one for one in found if one.group == group) for group in grouped}
    return Comparison(
        *labels,
        pairs,
        {group: ones for group, ones in by_group.items() if ones},
        _notes(before, after, len(pairs), labels),
    )


def _shared(before: Evaluation, after: Evaluation) -> tuple[Metric, ...]:
    """Return the metrics that both computed in the same way."""
    return tuple(metric for metric in after.metrics if metric in before.metrics)


def _notes(before: Evaluation, after: Evaluation, shared: int, labels: tuple[str, str]) -> tuple[str, ...]:
    notes = [HOW_TO_READ]
    for label, one in zip(labels, (before, after), strict=True):
        if len(one.rows) > shared:
            notes.append(
                f"{counted(len(one.rows) - shared, 'row')} of {label} left out: the other run does not have the same."
            )
    other = {metric.title for metric in (*before.metrics, *after.metrics)} - {
        metric.title for metric in _shared(before, after)
    }
    if other:
        notes.append(f"Computed in one run alone, or in another way: {', '.join(sorted(other))}.")
    return tuple(notes)
