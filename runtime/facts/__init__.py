"""Facts in ultrasound reports: read by rules from English and Chinese text, and compared between two reports."""

from echovlm_edge.runtime.facts.agreement import Agreement, Counts, agreement
from echovlm_edge.runtime.facts.reading import read_facts
from echovlm_edge.runtime.facts.values import Fact, Facts, Kind, Organ, Side

__all__ = ["Agreement", "Counts", "Fact", "Facts", "Kind", "Organ", "Side", "agreement", "read_facts"]
