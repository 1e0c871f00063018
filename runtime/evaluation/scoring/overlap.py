"""The authors' recipe: BLEU-1 to 4, ROUGE-1, 2, L and METEOR of each answer, averaged, over characters and over jieba's words.

As in `run_eval.py` of their repository MedAI-UAIX/SonoVLM: lower case; nltk's sentence_bleu with smoothing method 1 and equal
weights; rouge_chinese's F-measure on tokens joined by spaces; nltk's METEOR. An empty answer scores 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from echovlm_edge.runtime.evaluation.scoring.metric import BLEU_ORDERS, Case, Metric, Statistics, mean_of
from echovlm_edge.runtime.evaluation.scoring.tokens import CHARACTERS, TOKENS, older_syntax

ROUGE = ("rouge-1", "rouge-2", "rouge-l")
HEADLINES = ("bleu1", "bleu4", "rouge-1", "rouge-l", "meteor")
WITH_SYNONYMS, WITHOUT_SYNONYMS = "METEOR", "METEOR without synonyms"


class Overlap:
    """Scores texts by the tokens that they share with the reference; judgements and choices have no such score."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Each metric over each kind of tokens."""
        return tuple(_metric(name, title, note, tokens) for tokens in TOKENS for name, title, note in _names())

    def score(self, case: Case) -> Mapping[str, Statistics]:
        """Score an answer."""
        if case.task.closed:
            return {}
        found = dict[str, Statistics]()
        for tokens, split in TOKENS.items():
            scores = scores_of(split(case.reference.lower()), split(case.answer.lower()))
            found |= {_key(name, tokens): mean_of(score) for name, score in scores.items()}
        return found


def scores_of(reference: list[str], answer: list[str]) -> dict[str, float]:
    """Score the tokens of an answer against those of the reference: bleu1 to bleu4, rouge-1, rouge-2, rouge-l, meteor, 0 to 1."""
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from nltk.translate.meteor_score import meteor_score

    with older_syntax():
        from rouge_chinese import Rouge

    if not answer:
        return {name: 0.0 for name, _, _ in _names()}
    smooth = SmoothingFunction().method1
    bleu = {
        f"bleu{order}": float(sentence_bleu([reference], answer, (1 / order,) * order, smooth))
        for order in range(1, BLEU_ORDERS + 1)
    }
    (rouge,) = Rouge(metrics=list(ROUGE)).get_scores(" ".join(answer), " ".join(reference))
    meteor = float(meteor_score([reference], answer, wordnet=synonyms()))
    return {**bleu, **{name: float(rouge[name]["f"]) for name in ROUGE}, "meteor": meteor}


class NoSynonyms:
    """Stands where WordNet would: it knows no word."""

    def synsets(self, word: str) -> list[Any]:
        """Return no meanings."""
        return []


@cache
def synonyms() -> Any:
    """Return WordNet from NLTK's data, or `NoSynonyms` where that is not installed; nothing is downloaded.

    Chinese words are not in WordNet, so that METEOR of Chinese text is the same with and without it, up to the Latin words in it.
    """
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:
        return NoSynonyms()
    return wordnet


def _names() -> list[tuple[str, str, str]]:
    """Each metric's key, title and note, without its tokens."""
    meteor = WITHOUT_SYNONYMS if isinstance(synonyms(), NoSynonyms) else WITH_SYNONYMS
    stages = "exact words and Porter's stems" + (
        " alone" if meteor is WITHOUT_SYNONYMS else ", then WordNet's synonyms"
    )
    return [
        *(
            (f"bleu{order}", f"BLEU-{order}", "nltk sentence_bleu, smoothing method 1, mean over rows")
            for order in range(1, 5)
        ),
        *((name, name.upper(), "rouge_chinese, F-measure, mean over rows") for name in ROUGE),
        ("meteor", meteor, f"nltk meteor_score: {stages}; mean over rows"),
    ]


def _metric(name: str, title: str, note: str, tokens: str) -> Metric:
    headline = tokens == CHARACTERS and name in HEADLINES
    return Metric(
        _key(name, tokens),
        f"{title}, {tokens}",
        f"overlap of {tokens}",
        "share",
        f"{note}; lower case, tokens: {tokens}",
        headline=headline,
    )


def _key(name: str, tokens: str) -> str:
    return f"{name.replace('-', '')}_{tokens}"
