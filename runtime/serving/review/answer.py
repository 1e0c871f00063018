"""An answer that is none of those that were asked for."""

from __future__ import annotations

from echovlm_edge.runtime.contracts.tasks import Task
from echovlm_edge.runtime.facts.closed_answers import options_of, read_choice, read_judgement
from echovlm_edge.runtime.serving.review.reviewed import Reviewed


def is_no_answer(reviewed: Reviewed) -> str | None:
    """Check that a statement was judged, and that one of the options was chosen."""
    asked = reviewed.asked
    if not reviewed.text.strip():
        return None
    if asked.task is Task.JUDGE and read_judgement(reviewed.text) is None:
        return reviewed.say("The answer is neither True nor False.", "回答既不是True也不是False。")
    if asked.task is Task.CHOICE:
        options = options_of(asked.words)
        letter = read_choice(reviewed.text, options)
        if letter is None or (options and letter not in options):
            return reviewed.say("The answer is none of the options.", "回答不是所给选项之一。")
    return None
