"""A report without the impression that was asked for."""

from __future__ import annotations

from echovlm_edge.runtime.contracts.sections import split_sections
from echovlm_edge.runtime.contracts.tasks import Task
from echovlm_edge.runtime.serving.review.reviewed import Reviewed


def lacks_an_impression(reviewed: Reviewed) -> str | None:
    """Check that a report has an impression; the caller's own words may ask for something else."""
    asked = reviewed.asked
    if asked.task is not Task.REPORT or asked.words.strip() or not reviewed.text.strip():
        return None
    if split_sections(reviewed.text).impression:
        return None
    return reviewed.say("The report has no impression.", "报告缺少超声提示（诊断结论）。")
