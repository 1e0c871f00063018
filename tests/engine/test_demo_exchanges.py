"""What the demo is asked about simulated studies: right answers count as right, wrong ones do not."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo import corpus
from demo.exchanges import LETTERS, OF_REGION, TASKS, Exchange, exchange, is_right
from demo.prompts import Form
from demo.simulate import draw_truth
from demo.truth import Side, Truth
from echovlm_edge.runtime.contracts.tasks import Language, prompt_for

JUDGEMENTS, LETTERED = (Form.JUDGE, Form.ASKED_JUDGE), (Form.CHOICE, Form.ASKED_CHOICE)
REPORTS = [form for form in Form if form.value.startswith(("report", "diagnosis", "findings", "impression", "caption"))]


def drawn(form: Form, seed: int, language: Language) -> tuple[Truth, Exchange]:
    truth = draw_truth(np.random.default_rng(seed))
    return truth, exchange(form, truth, 1, language, np.random.default_rng([seed, 1]))


@given(st.sampled_from(Form), st.integers(0, 10_000), st.sampled_from(Language))
def test_the_right_answer_is_right_and_no_answer_is_not(form: Form, seed: int, language: Language) -> None:
    truth, asked = drawn(form, seed, language)
    assert is_right(asked, truth, asked.answer)
    assert not is_right(asked, truth, "")
    assert corpus.other_language(asked.prompt.replace("True", "").replace("False", ""), language) is False


@given(st.sampled_from(Form), st.integers(0, 10_000), st.sampled_from(Language))
def test_an_answer_about_another_study_or_in_the_other_language_is_not_right(
    form: Form, seed: int, language: Language
) -> None:
    truth, asked = drawn(form, seed, language)
    other = Language.ZH if language is Language.EN else Language.EN
    if form not in (*JUDGEMENTS, *LETTERED, Form.SIZE):  # True, False, letters and mm are the same in both
        assert not is_right(asked, truth, drawn(form, seed, other)[1].answer)
    if form in REPORTS and truth.side:
        mirrored = replace(truth, side=Side.LEFT if truth.side is Side.RIGHT else Side.RIGHT)
        wrong = exchange(form, mirrored, 1, language, np.random.default_rng(0)).answer
        assert not is_right(asked, truth, wrong)


@given(st.sampled_from(JUDGEMENTS), st.integers(0, 10_000), st.sampled_from(Language))
def test_a_false_statement_is_false_and_so_is_a_part_of_it(form: Form, seed: int, language: Language) -> None:
    truth, asked = drawn(form, seed, language)
    assert (asked.answer == "True") == all(claim.is_true for claim in asked.claims)
    stated = [
        corpus.parse_impression(words, language)
        for words in (corpus.write_impression(truth, language, np.random.default_rng(one)) for one in range(8))
        if words in asked.prompt
    ]
    assert bool(stated) == (asked.answer == "True")


def test_half_of_the_statements_are_true() -> None:
    answers = [drawn(Form.JUDGE, seed, Language.EN)[1].answer for seed in range(600)]
    assert set(answers) == {"True", "False"} and 240 < answers.count("True") < 360


@given(st.integers(0, 10_000), st.sampled_from(Language))
def test_one_of_four_different_options_is_right(seed: int, language: Language) -> None:
    truth, asked = drawn(Form.RESTATED_CHOICE, seed, language)
    starts = [asked.text.index(f"{letter}. ") for letter in LETTERS]
    options = [asked.text[start + 3 : end].strip() for start, end in pairwise([*starts, len(asked.text)])]
    assert starts == sorted(starts) and len(set(options)) == 4
    right, letter = asked.answer[:-1].split(" (")
    assert right in (corpus.name(truth, language), corpus.organ(truth, language))
    assert options[LETTERS.index(letter)].startswith(right)
    assert [claim.text for claim in asked.claims if claim.is_true] == [right] and len(asked.claims) == 4


def test_every_letter_is_right_as_often() -> None:
    answers = [drawn(Form.CHOICE, seed, Language.ZH)[1].answer for seed in range(400)]
    assert all(60 < answers.count(letter) < 140 for letter in LETTERS)


@pytest.mark.parametrize("language", Language)
@pytest.mark.parametrize("form", OF_REGION)
def test_the_region_is_named_where_it_is_given(form: Form, language: Language) -> None:
    truth, asked = drawn(form, 3, language)
    without = next(one for one in TASKS if TASKS[one] is asked.task and one not in OF_REGION)
    assert asked.region is truth.region and asked.prompt != drawn(without, 3, language)[1].prompt


@given(st.sampled_from(list(TASKS)), st.integers(0, 10_000), st.sampled_from(Language))
def test_a_task_is_asked_in_the_words_of_the_product(form: Form, seed: int, language: Language) -> None:
    asked = drawn(form, seed, language)[1]
    assert asked.task is TASKS[form] and asked.prompt == prompt_for(asked.task, asked.text, 1, language, asked.region)


def test_a_size_is_right_within_a_fifth() -> None:
    truth = next(one for seed in range(99) if (one := draw_truth(np.random.default_rng(seed))).size_mm)
    asked = exchange(Form.SIZE, truth, 1, Language.EN, np.random.default_rng(0))
    assert truth.size_mm
    assert is_right(asked, truth, f"{round(1.15 * truth.size_mm)} mm.")
    assert not is_right(asked, truth, f"{round(1.3 * truth.size_mm)} mm.")
