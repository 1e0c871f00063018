"""The states of a study and of a delivery, and which may follow which."""

from __future__ import annotations

import enum


class StudyState(enum.StrEnum):
    """What is known of a study. Its version counts up each time that instances come after it was complete."""

    RECEIVING = "receiving"  # instances may still come
    COMPLETE = "complete"  # a report is owed
    REPORTED = "reported"  # its documents are in the spool and are being delivered
    DELIVERED = "delivered"  # every destination has them
    FAILED = "failed"  # no report can be written; `reason` says why
    EMPTIED = "emptied"  # its instances are gone from the spool


class DeliveryState(enum.StrEnum):
    """What is known of one document at one destination."""

    OWED = "owed"  # it will be sent until it is acknowledged
    DELIVERED = "delivered"
    SUPERSEDED = "superseded"  # a newer version took its place before it was acknowledged


# From a study's state to those that may follow it, and why.
NEXT: dict[StudyState, dict[StudyState, str]] = {
    StudyState.RECEIVING: {StudyState.COMPLETE: "quiet, procedure step completed, or an operator's word"},
    StudyState.COMPLETE: {
        StudyState.RECEIVING: "a late instance",
        StudyState.REPORTED: "documents made",
        StudyState.FAILED: "no report possible",
    },
    StudyState.REPORTED: {StudyState.RECEIVING: "a late instance", StudyState.DELIVERED: "all acknowledged"},
    StudyState.DELIVERED: {
        StudyState.RECEIVING: "a late instance",
        StudyState.REPORTED: "an operator sends it again",
        StudyState.EMPTIED: "kept long enough",
    },
    StudyState.FAILED: {
        StudyState.RECEIVING: "a late instance",
        StudyState.COMPLETE: "an operator tries again",
        StudyState.EMPTIED: "kept long enough",
    },
    StudyState.EMPTIED: {StudyState.RECEIVING: "a late instance"},
}


def before(state: StudyState) -> tuple[StudyState, ...]:
    """Return the states that `state` may follow."""
    return tuple(earlier for earlier, later in NEXT.items() if state in later)
