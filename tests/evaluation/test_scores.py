"""Ten rows scored by hand: their tokens as one writes them down, the counts, and the libraries called on these tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from nltk.translate.meteor_score import meteor_score
from rouge_chinese import Rouge
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from echovlm_edge.runtime.evaluation.data.recognition import RowTask
from echovlm_edge.runtime.evaluation.scoring.catalogue import metrics_of, scorers, statistics_of
from echovlm_edge.runtime.evaluation.scoring.metric import Case
from echovlm_edge.runtime.evaluation.scoring.overlap import synonyms
from echovlm_edge.runtime.evaluation.scoring.tokens import characters, words


@dataclass(frozen=True)
class Checked:
    """A row with its tokens, separated by spaces, and the unigrams that both texts share (clipped) as counted by hand."""

    reference: str
    answer: str
    reference_characters: str
    answer_characters: str
    shared: int
    reference_words: str
    answer_words: str
    language: str = "zh"


ROWS = (
    Checked("右肾囊肿。", "右肾囊肿。", "右 肾 囊 肿 。", "右 肾 囊 肿 。", 5, "右 肾囊肿 。", "右 肾囊肿 。"),
    Checked("右肾囊肿。", "左肾囊肿。", "右 肾 囊 肿 。", "左 肾 囊 肿 。", 4, "右 肾囊肿 。", "左 肾囊肿 。"),
    Checked("肝内强回声", "肝内回声", "肝 内 强 回 声", "肝 内 回 声", 4, "肝内强 回声", "肝内 回声"),
    Checked("心脏正常", "子宫肌瘤", "心 脏 正 常", "子 宫 肌 瘤", 0, "心脏 正常", "子宫 肌瘤"),
    Checked("约18mm", "约17mm", "约 18 mm", "约 17 mm", 2, "约 18mm", "约 17mm"),
    Checked("结节。结节。", "结节。", "结 节 。 结 节 。", "结 节 。", 3, "结节 。 结节 。", "结节 。"),
    Checked("未见异常", "", "未 见 异 常", "", 0, "未见异常", ""),
    Checked("BI-RADS 4类", "bi-rads 3类", "bi - rads 4 类", "bi - rads 3 类", 4, "bi - rads 4 类", "bi - rads 3 类"),
    Checked("A renal cyst.", "A renal mass.", "a renal cyst .", "a renal mass .", 3, "a renal cyst .", "a renal mass .", "en"),
    Checked("Simple cysts seen", "A simple cyst", "simple cysts seen", "a simple cyst", 1, "simple cysts seen", "a simple cyst", "en"),
)  # fmt: skip
over_rows = pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))


def scored(row: Checked, task: RowTask = RowTask.CAPTION) -> dict[str, float]:
    """The row's own figures, 0 to 100."""
    statistics = statistics_of(Case(task, row.language, "?", row.reference, row.answer), scorers())
    kinds = {metric.key: metric for metric in metrics_of(scorers())}
    return {key: float(kinds[key].value(np.array(sums))) for key, sums in statistics.items()}


@over_rows
def test_tokens_are_those_written_down(row: Checked) -> None:
    assert characters(row.reference.lower()) == row.reference_characters.split()
    assert characters(row.answer.lower()) == row.answer_characters.split()
    assert words(row.reference.lower()) == row.reference_words.split()
    assert words(row.answer.lower()) == row.answer_words.split()


@over_rows
def test_bleu_1_and_rouge_1_are_the_counts_on_paper(row: Checked) -> None:
    reference, answer = row.reference_characters.split(), row.answer_characters.split()
    found = scored(row)
    brevity = math.exp(min(0.0, 1 - len(reference) / len(answer))) if answer else 0.0
    precision = row.shared / len(answer) if answer else 0.0
    if row.shared:
        assert found["bleu1_characters"] == pytest.approx(100 * precision * brevity)
    kinds, known = set(answer), set(reference)  # rouge_chinese counts each token once
    both = len(kinds & known)
    expected = 2 * both / (len(kinds) + len(known))
    assert found["rouge1_characters"] == pytest.approx(
        100 * expected, abs=1e-5
    )  # the library adds 1e-8 to a denominator


@over_rows
def test_every_figure_is_the_librarys_on_these_tokens(row: Checked) -> None:
    found = scored(row)
    for kind, reference, answer in (
        ("characters", row.reference_characters.split(), row.answer_characters.split()),
        ("jieba", row.reference_words.split(), row.answer_words.split()),
    ):
        smooth = SmoothingFunction().method1
        for order in range(1, 5):
            expected = sentence_bleu([reference], answer, [1 / order] * order, smooth) if answer else 0.0
            assert found[f"bleu{order}_{kind}"] == pytest.approx(100 * expected)
        names = ("rouge-1", "rouge-2", "rouge-l")
        rouge = Rouge(list(names)).get_scores(" ".join(answer), " ".join(reference))[0] if answer else None
        for name in names:
            expected = rouge[name]["f"] if rouge else 0.0
            assert found[f"{name.replace('-', '')}_{kind}"] == pytest.approx(100 * expected)
        assert found[f"meteor_{kind}"] == pytest.approx(100 * meteor_score([reference], answer, wordnet=synonyms()))


def test_a_language_has_its_own_figures_and_no_other() -> None:
    chinese, english = scored(ROWS[1]), scored(ROWS[8])
    assert chinese["sacrebleu_zh"] == pytest.approx(
        BLEU(lowercase=True, tokenize="zh").corpus_score([ROWS[1].answer], [[ROWS[1].reference]]).score
    )
    assert not {"sacrebleu_13a", "english_rouge1"} & chinese.keys()
    rouge = RougeScorer(["rouge1", "rougeL"], use_stemmer=True).score(ROWS[8].reference, ROWS[8].answer)
    assert english["english_rouge1"] == pytest.approx(100 * rouge["rouge1"].fmeasure) == pytest.approx(200 / 3)
    assert english["english_rougeL"] == pytest.approx(100 * rouge["rougeL"].fmeasure)
    assert "sacrebleu_zh" not in english


@pytest.mark.parametrize(("language", "tokenizer"), [("zh", "zh"), ("en", "13a")])
def test_corpus_bleu_of_summed_counts_is_sacrebleus_of_all_rows(language: str, tokenizer: str) -> None:
    rows = [row for row in ROWS if row.language == language]
    (metric,) = (one for one in metrics_of(scorers()) if one.key == f"sacrebleu_{tokenizer}")
    sums = [
        statistics_of(Case(RowTask.REPORT, language, "?", row.reference, row.answer), scorers())[metric.key]
        for row in rows
    ]
    expected = BLEU(lowercase=True, tokenize=tokenizer).corpus_score(
        [row.answer for row in rows], [[row.reference for row in rows]]
    )
    assert float(metric.value(np.sum(sums, axis=0))) == pytest.approx(expected.score) and expected.score > 0


def test_closed_questions_have_accuracy_and_nothing_else() -> None:
    def judged(answer: str) -> dict[str, tuple[float, ...]]:
        return statistics_of(Case(RowTask.JUDGE, "zh", "对吗？", "True", answer), scorers())

    assert judged("正确") == {"accuracy_judge": (1.0, 1.0), "unanswered_judge": (0.0, 1.0)}
    assert judged("False") == {"accuracy_judge": (0.0, 1.0), "unanswered_judge": (0.0, 1.0)}
    assert judged("结节") == {"accuracy_judge": (0.0, 1.0), "unanswered_judge": (1.0, 1.0)}
    question = "哪一项正确？A. 囊肿 B. 结节"
    chosen = statistics_of(Case(RowTask.CHOICE, "zh", question, "B", "结节"), scorers())
    assert chosen == {"accuracy_choice": (1.0, 1.0), "unanswered_choice": (0.0, 1.0)}


def test_facts_are_counted_by_kind() -> None:
    reference, answer = "左侧乳腺见低回声结节，大小约20mm。", "左侧乳腺见低回声结节，大小约23mm，右侧乳腺见囊肿。"
    found = statistics_of(Case(RowTask.REPORT, "zh", "?", reference, answer), scorers())
    facts = {key: sums for key, sums in found.items() if key.startswith("facts")}
    assert facts["facts_size"] == (1.0, 1.0) and facts["facts_echogenicity"] == (1.0, 1.0)  # 23 mm is within 20 %
    assert facts["facts"][0] == facts["facts"][1] and facts["facts_invented"][0] > 0
    assert "facts_birads" not in facts  # the reference states none
    wrong = statistics_of(Case(RowTask.REPORT, "zh", "?", reference, "左侧乳腺见低回声结节，大小约30mm。"), scorers())
    assert wrong["facts_size"] == (0.0, 1.0) and wrong["facts_side"] == (1.0, 1.0)
