"""All scorers of a run, and a row's statistics by all of them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.extras import install_hint
from echovlm_edge.runtime.evaluation.scoring.accuracy import Accuracy
from echovlm_edge.runtime.evaluation.scoring.by_language import CorpusBleu, EnglishRouge
from echovlm_edge.runtime.evaluation.scoring.metric import Case, Metric, Scorer, Statistics
from echovlm_edge.runtime.evaluation.scoring.overlap import Overlap
from echovlm_edge.runtime.evaluation.scoring.stated_facts import StatedFacts

LIBRARIES = ("jieba", "nltk", "rouge_chinese", "rouge_score", "sacrebleu")


def scorers(*further: Scorer) -> tuple[Scorer, ...]:
    """Return the scorers of every run, and further ones.

    Raises:
        NotPossibleHere: a library is not installed; found before anything is asked.
    """
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise NotPossibleHere(f"Scores need {missing[0]}, which is not installed: {install_hint('evaluate')}.")
    return (Overlap(), *further, StatedFacts(), Accuracy(), CorpusBleu(), EnglishRouge())


def metrics_of(scoring: Sequence[Scorer]) -> tuple[Metric, ...]:
    """Return the metrics of scorers, in the order of tables."""
    return tuple(metric for scorer in scoring for metric in scorer.metrics)


def statistics_of(case: Case, scoring: Sequence[Scorer]) -> dict[str, Statistics]:
    """Return what a row adds to each metric that applies to it."""
    return {key: sums for scorer in scoring for key, sums in scorer.score(case).items()}
