"""Score a bundle's answers: the share that is right by form of request, and how reports compare with the true ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from demo import corpus
from demo.answers import Answer
from demo.corpus import SIZE_TOLERANCE
from demo.prompts import Form
from echovlm_edge.runtime.contracts.tasks import Language


@dataclass(frozen=True)
class Scores:
    """Scores of reports over a set of studies; shares are of the studies that have the fact.

    Attributes:
        studies: how many.
        region: share whose region is right; kind, side likewise.
        size: share of measured findings whose size is within 20 %.
        size_error_mm: mean absolute error of the sizes that were given.
        bleu1: against every phrasing of the true report, 0 to 100.
        rouge1: F-measure against the nearest phrasing, mean, 0 to 100; rougeL likewise.
    """

    studies: int
    region: float
    kind: float
    side: float
    size: float
    size_error_mm: float
    bleu1: float
    rouge1: float
    rougeL: float  # noqa: N815 (its name in the literature)


@dataclass(frozen=True)
class Cell:
    """The answers to one form of request in one language about studies of one number of frames."""

    form: Form
    language: Language
    frames: int
    answers: int
    right: float


def by_form(answers: Sequence[Answer]) -> list[Cell]:
    """Count right answers by form, language and number of frames."""
    groups: defaultdict[tuple[Form, Language, int], list[bool]] = defaultdict(list)
    for answer in answers:
        groups[answer.asked.form, answer.asked.language, len(answer.study.images)].append(answer.right)
    return [Cell(*key, len(right), float(np.mean(right))) for key, right in groups.items()]


class _Words:
    """Tokenize like ROUGE: words, and each Chinese character separately."""

    def tokenize(self, text: str) -> list[str]:
        spaced = "".join(f" {character} " if ord(character) > 0x2E80 else character for character in text.lower())
        return "".join(character if character.isalnum() else " " for character in spaced).split()


def score_reports(reports: Sequence[Answer]) -> Scores:
    """Compare reports with their studies' truths."""
    true = [corpus.facts(report.study.truth) for report in reports]
    said = [corpus.parse_report(report.text, report.asked.language) for report in reports]
    pairs = list(zip(true, said, strict=True))
    sided = [(fact, read) for fact, read in pairs if fact.side]
    sized = [(fact.size_mm, read.size_mm) for fact, read in pairs if fact.size_mm]
    given = [(real, read) for real, read in sized if read is not None]
    right = [read is not None and abs(read - real) <= SIZE_TOLERANCE * real for real, read in sized]
    references = [corpus.every_report(report.study.truth, report.asked.language) for report in reports]
    rouge = RougeScorer(["rouge1", "rougeL"], tokenizer=_Words())
    nearest = [rouge.score_multi(texts, report.text) for texts, report in zip(references, reports, strict=True)]
    return Scores(
        len(reports),
        _share([fact.region == read.region for fact, read in pairs]),
        _share([fact.kind == read.kind for fact, read in pairs]),
        _share([fact.side == read.side for fact, read in sided]),
        _share(right),
        float(np.mean([abs(read - real) for real, read in given])) if given else float("nan"),
        _bleu1([report.text for report in reports], references),
        100 * float(np.mean([scores["rouge1"].fmeasure for scores in nearest])),
        100 * float(np.mean([scores["rougeL"].fmeasure for scores in nearest])),
    )


def _bleu1(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    most = max(map(len, references))
    columns = [[texts[min(index, len(texts) - 1)] for texts in references] for index in range(most)]
    spaced = _Words()
    split = [[" ".join(spaced.tokenize(text)) for text in column] for column in columns]
    candidates = [" ".join(spaced.tokenize(text)) for text in texts]
    return float(BLEU(max_ngram_order=1, tokenize="none").corpus_score(candidates, split).score)


def _share(right: Sequence[bool]) -> float:
    return float(np.mean(right)) if right else float("nan")
