"""Metrics that belong to one language: sacrebleu's corpus BLEU with the language's tokenizer, and rouge-score for English."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from echovlm_edge.runtime.contracts.tasks import Language
from echovlm_edge.runtime.evaluation.scoring.metric import Case, Metric, Statistics, mean_of

TOKENIZERS = {Language.ZH.value: "zh", Language.EN.value: "13a"}
ROUGE = ("rouge1", "rouge2", "rougeL")


class CorpusBleu:
    """sacrebleu's corpus BLEU of lower-cased texts: `zh` for Chinese rows, `13a` for English ones."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """One for each language."""
        note = "sacrebleu corpus BLEU, lower case, exponential smoothing, tokenizer"
        return tuple(
            Metric(
                f"sacrebleu_{tokenizer}",
                f"sacreBLEU {tokenizer}",
                "corpus BLEU",
                "corpus_bleu",
                f"{note} {tokenizer}; {language} rows",
            )
            for language, tokenizer in TOKENIZERS.items()
        )

    def score(self, case: Case) -> Mapping[str, Statistics]:
        """Count an answer's n-grams: matches and totals of orders 1 to 4, and both lengths."""
        tokenizer = TOKENIZERS.get(case.language)
        if case.task.closed or tokenizer is None:
            return {}
        counted = _bleu(tokenizer).corpus_score([case.answer], [[case.reference]])
        return {f"sacrebleu_{tokenizer}": (*counted.counts, *counted.totals, counted.sys_len, counted.ref_len)}


class EnglishRouge:
    """rouge-score of English rows, with its own tokenizer and stemmer."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """ROUGE-1, 2 and L."""
        note = "rouge-score with its own tokenizer and Porter stemmer, F-measure, mean over English rows"
        return tuple(Metric(f"english_{name}", f"{name}, English", "rouge-score", "share", note) for name in ROUGE)

    def score(self, case: Case) -> Mapping[str, Statistics]:
        """Score an answer."""
        if case.task.closed or case.language != Language.EN.value:
            return {}
        scores = _rouge().score(case.reference, case.answer)
        return {f"english_{name}": mean_of(float(scores[name].fmeasure)) for name in ROUGE}


@cache
def _bleu(tokenizer: str) -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(lowercase=True, tokenize=tokenizer)


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE), use_stemmer=True)
