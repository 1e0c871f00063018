"""The sentences that a reader of the figures must know: what was not asked as it stands, cut off, skipped or left out."""

from __future__ import annotations

from collections.abc import Sequence

from echovlm_edge.runtime.contracts.request import Sampling
from echovlm_edge.runtime.evaluation.data.rows import NotSent
from echovlm_edge.runtime.evaluation.published import settings_note
from echovlm_edge.runtime.evaluation.schema import ScoredRow, SkippedRow
from echovlm_edge.runtime.evaluation.scoring.overlap import NoSynonyms, synonyms

NAMED = 5  # rows that a sentence names
_NOT_SENT = {
    NotSent.SYSTEM: "System prompts, for which the service has no field, were left out",
    NotSent.HISTORY: "Earlier turns, for which the service has no field, were left out: the last question was asked alone, "
    "about all pictures",
    NotSent.PLACES: "Pictures that stand after words were shown before them, as the service shows all pictures",
}


def notes(rows: Sequence[ScoredRow], skipped: Sequence[SkippedRow], sampling: Sampling) -> tuple[str, ...]:
    """Write the notes of an evaluation."""
    found = [settings_note(sampling)]
    found += [
        f"{sentence}: {_rows(having)}."
        for what, sentence in _NOT_SENT.items()
        if (having := [row.name for row in rows if what.value in row.not_sent])
    ]
    if cut := [row.name for row in rows if row.finish == "length"]:
        found.append(f"Answers that were cut off at the limit of tokens: {_rows(cut)}.")
    if skipped:
        found.append(f"Skipped: {counted(len(skipped), 'row')}.")
    if isinstance(synonyms(), NoSynonyms):
        found.append(
            "METEOR was computed without synonyms, because NLTK's WordNet data is not installed: for Chinese words that makes no "
            "difference, for English ones it lowers the score."
        )
    return tuple(found)


def counted(count: int, what: str) -> str:
    """Write a number with its noun."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _rows(named: Sequence[str]) -> str:
    more = len(named) - NAMED
    names = "; ".join(named[:NAMED]) + (f"; and {more:,} more" if more > 0 else "")
    return f"{counted(len(named), 'row')} ({names})"
