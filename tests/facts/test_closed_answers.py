"""Truth values and letters as people and models write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echovlm_edge.runtime.facts.closed_answers import LETTERS, options_of, read_choice, read_judgement

JUDGEMENTS = {
    **dict.fromkeys(("True", "ture", "是", "对", "是的。", "描述正确", "Yes", "Ｔｒｕｅ", "**True**"), "true"),
    **dict.fromkeys(("这份报告与图像是一致的", "对应关系：一致"), "true"),
    **dict.fromkeys(("False.", "否", "错", "错误", "不对", "不正确。", "不一致", "该描述有误"), "false"),
    **dict.fromkeys(("报告与图像不相符", "No, it doesn't match."), "false"),
    "The description is not correct.": "false",
    "It is inconsistent": "false",
    "True or False: False": "false",
    "是否一致？不一致": "false",
    "Is it true? No.": "false",
    "正确还是错误：正确": "true",
    "Answer: True, as the report isn't false": "true",
    "答案是：错误": "false",
    "the true size is 5 mm; answer: false": "false",
    **dict.fromkeys(("", "nodule", "notable", "Ture或False", "True or False?", "Normal liver", "无"), None),
}  # fmt: skip
OPTIONS = "哪一项正确？A. A cyst. B. A solid nodule.\nC、未见异常 D) 钙化灶"
CHOICES = {
    "A": "A",
    "B.": "B",
    "(c)": "C",
    "Ｄ": "D",
    "b 低回声": "B",
    "B、低回声结节": "B",
    "A. A hypoechoic nodule": "A",
    "A: yes": "A",
    "The answer is B": "B",
    "the correct option is (B) because it is solid": "B",
    "答案：C": "C",
    "选项D正确": "D",
    "选择A": "A",
    "选 B": "B",
    "正确的是C项": "C",
    "结论：D。": "D",
    "I think B.": "B",
    "A or B? The answer is C.": "C",
    "It is a solid nodule.": "B",  # restated without its letter
    "钙化灶": "D",
    "A hypoechoic mass": None,  # an article
    "Answer: A mass": None,
    "A和B": None,
    "A or B": None,
    "BI-RADS 4a": None,
    "Vitamin D deficiency": None,
    "A cyst, or a solid nodule": None,
    "": None,
}


@pytest.mark.parametrize(("text", "said"), JUDGEMENTS.items())
def test_judgements(text: str, said: str | None) -> None:
    assert read_judgement(text) == said


@pytest.mark.parametrize(("text", "letter"), CHOICES.items())
def test_choices(text: str, letter: str | None) -> None:
    assert read_choice(text, options_of(OPTIONS)) == letter


def test_options_are_read_from_the_question() -> None:
    assert options_of(OPTIONS) == {"A": "a cyst.", "B": "a solid nodule.", "C": "未见异常", "D": "钙化灶"}
    assert options_of("选择。A、囊肿；B、结节；C、积液") == {"A": "囊肿", "B": "结节", "C": "积液"}
    assert options_of("Is it a. or what?") == {}


signs = st.sampled_from(("", " ", "。", ".", "!", "\n", "**", "「", "）"))


@given(st.sampled_from(LETTERS), st.booleans(), signs, signs)
def test_a_letter_with_any_signs_around_is_that_choice(letter: str, small: bool, before: str, after: str) -> None:
    said = letter.lower() if small else letter
    assert read_choice(f"{before}{said}{after}") == letter


@given(st.sampled_from(("true", "ture", "正确", "yes")), st.sampled_from(("false", "不正确", "no", "错误")), signs)
def test_the_first_word_of_truth_counts(one: str, other: str, sign: str) -> None:
    assert read_judgement(f"{one}，{sign}{other}") == "true"
    assert read_judgement(f"{other}，{sign}{one}") == "false"


@given(st.text(max_size=60))
def test_any_text_is_read_without_an_error(text: str) -> None:
    assert read_judgement(text) in ("true", "false", None)
    assert read_choice(text, options_of(text)) in (*LETTERS, None)
