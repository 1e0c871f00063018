"""All rules by their names, and the notes of those that apply to a text."""

from __future__ import annotations

from collections.abc import Collection

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.contracts.request import FinishReason
from echovlm_edge.runtime.serving.review.answer import is_no_answer
from echovlm_edge.runtime.serving.review.ending import is_cut_off
from echovlm_edge.runtime.serving.review.impression import lacks_an_impression
from echovlm_edge.runtime.serving.review.picture import is_about_other_pictures
from echovlm_edge.runtime.serving.review.place import contradicts_the_organ, contradicts_the_side
from echovlm_edge.runtime.serving.review.repetition import repeats_itself
from echovlm_edge.runtime.serving.review.reviewed import Reviewed, Rule
from echovlm_edge.runtime.serving.review.script import has_other_characters
from echovlm_edge.runtime.serving.review.size import exceeds_the_pictures

RULES: dict[str, Rule] = {
    "repetition": repeats_itself,
    "ending": is_cut_off,
    "impression": lacks_an_impression,
    "script": has_other_characters,
    "side": contradicts_the_side,
    "organ": contradicts_the_organ,
    "size": exceeds_the_pictures,
    "picture": is_about_other_pictures,
    "answer": is_no_answer,
}


def rules_but(left_out: Collection[str]) -> tuple[Rule, ...]:
    """Return all rules but some, in order.

    Raises:
        InvalidInput: there is no rule of such a name.
    """
    if unknown := sorted(set(left_out) - RULES.keys()):
        raise InvalidInput(f"There is no note {unknown[0]} to leave out: choose from {', '.join(RULES)}.")
    return tuple(rule for name, rule in RULES.items() if name not in left_out)


def notes(reviewed: Reviewed, rules: Collection[Rule]) -> tuple[str, ...]:
    """Return what the rules say of a finished text; nothing of one that the caller cancelled, which nobody reads."""
    if reviewed.finish is FinishReason.CANCELLED:
        return ()
    return tuple(note for rule in rules if (note := rule(reviewed)))
