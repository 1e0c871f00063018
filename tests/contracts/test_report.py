"""Sections: findings and impression, however the model writes its headings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echovlm_edge.runtime.contracts.sections import Sections, split_sections

BOTH = Sections("A cyst of 12 mm.", "Simple cyst.")


@pytest.mark.parametrize(
    "text",
    [
        "Ultrasound findings: A cyst of 12 mm.; Ultrasound impression: Simple cyst.",
        "ultrasound Findings:A cyst of 12 mm.\n\nULTRASOUND IMPRESSION : Simple cyst.",
        "Ultrasound findings: {A cyst of 12 mm.}; Ultrasound impression: {Simple cyst.}",
        "**Findings:** A cyst of 12 mm.\n**Impression:** Simple cyst.".replace("**", ""),
        "Here is the report. Ultrasound findings: A cyst of 12 mm. Ultrasound impression: Simple cyst.",
    ],
)
def test_english_headings(text: str) -> None:
    assert split_sections(text) == BOTH


@pytest.mark.parametrize("heading", ["超声提示", "超声诊断", "诊断意见"])
@pytest.mark.parametrize("colon", [":", "："])
def test_chinese_headings(heading: str, colon: str) -> None:
    text = f"超声所见{colon}甲状腺右叶见低回声结节。{heading}{colon}甲状腺结节。"
    assert split_sections(text) == Sections("甲状腺右叶见低回声结节。", "甲状腺结节。")


@pytest.mark.parametrize(
    "text",
    [
        "超声所见：结节（见图）超声提示：甲状腺结节。",
        "超声所见\n结节（见图）\n超声提示\n甲状腺结节。",
    ],
)
def test_a_heading_after_a_closing_sign_or_alone_on_its_line(text: str) -> None:
    assert split_sections(text) == Sections("结节（见图）", "甲状腺结节。")


def test_a_heading_word_within_a_line_is_not_a_heading() -> None:
    text = "Findings: no other findings\nof note. 结合超声提示：复查"
    assert split_sections(text) == Sections("no other findings\nof note. 结合超声提示：复查", "")


def test_other_orders_and_missing_sections() -> None:
    assert split_sections("Ultrasound impression: Simple cyst.") == Sections("", "Simple cyst.")
    assert split_sections("Impression: B. Findings: A.") == Sections("A.", "B.")
    assert split_sections("The liver is normal.") == Sections()
    assert split_sections("") == Sections()
    assert split_sections("Findings: one.\nFindings: two.") == Sections("one.\nFindings: two.", "")


WORDS = st.text(
    st.characters(codec="utf-8", exclude_characters=":：;；{}*#", exclude_categories=("Cs", "Cc")), min_size=1
)


@given(findings=WORDS.map(str.strip), impression=WORDS.map(str.strip))
def test_what_was_written_is_read_back(findings: str, impression: str) -> None:
    text = f"Ultrasound findings: {findings}; Ultrasound impression: {impression}"
    assert split_sections(text) == Sections(findings, impression)


@given(st.text())
def test_any_text_splits_into_pieces_of_itself(text: str) -> None:
    sections = split_sections(text)
    assert sections.findings in text and sections.impression in text
