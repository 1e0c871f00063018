"""Facts: how many of the reference's statements an answer makes too, and how many of its own the reference does not make."""

from __future__ import annotations

from collections.abc import Mapping

from echovlm_edge.runtime.evaluation.scoring.metric import Case, Metric, Statistics
from echovlm_edge.runtime.facts import Counts, Kind, agreement, read_facts

ALL, INVENTED = "facts", "facts_invented"
FAMILY, READER = "facts", "read by the rules of runtime/facts"


class StatedFacts:
    """Reads the facts of both texts, and counts those in which they agree: organ, side, lesion, echogenicity, margin, size, categories."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The share of the reference's facts that the answer has, of all kinds and of each, and the share of the answer's that are new."""
        return (
            Metric(
                ALL,
                "facts",
                FAMILY,
                "share",
                f"share of the references' facts that the answers state; {READER}",
                headline=True,
            ),
            *(
                Metric(
                    _key(kind),
                    f"facts, {kind.value}",
                    FAMILY,
                    "share",
                    f"the same of {kind.value}{', within 20 %' if kind is Kind.SIZE else ''}",
                )
                for kind in Kind
            ),
            Metric(
                INVENTED,
                "facts, invented",
                FAMILY,
                "share",
                f"share of the answers' facts that the references do not state; {READER}",
                more_is_better=False,
            ),
        )

    def score(self, case: Case) -> Mapping[str, Statistics]:
        """Count a row's facts; a share whose whole is nothing is left out."""
        if case.task.closed:
            return {}
        counts = agreement(read_facts(case.reference), read_facts(case.answer)).by_kind
        total = Counts(*(sum(getattr(one, name) for one in counts.values()) for name in ("asked", "right", "invented")))
        found = {_key(kind): (one.right, one.asked) for kind, one in counts.items()}
        found |= {ALL: (total.right, total.asked), INVENTED: (total.invented, total.right + total.invented)}
        return {key: (float(part), float(whole)) for key, (part, whole) in found.items() if whole}


def _key(kind: Kind) -> str:
    return f"facts_{kind.value}"
