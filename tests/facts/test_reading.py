"""Facts read from a table of sentences, from generated sentences with a known truth, and from texts that are none."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echovlm_edge.runtime import facts
from echovlm_edge.runtime.facts import Fact, Facts, Kind, Organ, Side, places, read_facts, tokens, words
from tests.support.fact_sentences import sentences

# The rules prefer silence to a mistake, so precision is asked for first. One wrong fact in a hundred is what the worst of the table's
# sentences costs (a place that a preposition names is taken over by the next clause); recall leaves room for words that are not known.
PRECISION, RECALL = 0.98, 0.95


def test_the_table_is_read_with_precision() -> None:
    right, wrong, missed = Counter[Kind](), Counter[Kind](), Counter[Kind]()
    differences = []
    for text, expected in sentences():
        found = set(read_facts(text).stated)
        right.update(fact.kind for fact in found & expected)
        wrong.update(fact.kind for fact in found - expected)
        missed.update(fact.kind for fact in expected - found)
        if found != expected:
            differences.append((text, found ^ expected))
    print("kind, facts, precision, recall")
    for kind in Kind:
        there = right[kind] + missed[kind]
        precision, recall = right[kind] / (right[kind] + wrong[kind]), right[kind] / there
        print(f"{kind.value}, {there}, {precision:.3f}, {recall:.3f}")
        assert precision >= PRECISION and recall >= RECALL, differences


def test_the_table_has_both_languages_and_denials() -> None:
    texts = [text for text, _ in sentences()]
    assert sum(text.isascii() for text in texts) > 60 and sum(not text.isascii() for text in texts) > 60
    assert sum(str(fact.value).startswith("no ") for _, expected in sentences() for fact in expected) > 40


ORGANS = {
    (Organ.BREAST, "en"): "{side} breast",
    (Organ.THYROID, "en"): "{side} lobe of the thyroid",
    (Organ.KIDNEY, "en"): "{side} kidney",
    (Organ.VESSEL, "en"): "{side} carotid artery",
    (Organ.BREAST, "zh"): "{side}侧乳腺",
    (Organ.THYROID, "zh"): "甲状腺{side}叶",
    (Organ.KIDNEY, "zh"): "{side}肾",
    (Organ.VESSEL, "zh"): "{side}侧颈总动脉",
}
SIDES = {(Side.LEFT, "en"): "left", (Side.RIGHT, "en"): "right", (Side.LEFT, "zh"): "左", (Side.RIGHT, "zh"): "右"}
LESIONS = {"nodule": "结节", "mass": "肿块", "cyst": "囊肿", "plaque": "斑块", "calcification": "钙化灶"}
ECHOES = {"anechoic": "无回声", "hypoechoic": "低回声", "isoechoic": "等回声", "hyperechoic": "高回声"}
STATED = {
    "en": (
        "A {size} {echo} {lesion} is seen in the {organ}.",
        "The {organ} shows a {echo} {lesion}, measuring {size}.",
    ),
    "zh": ("{organ}见{echo}{lesion}，大小约{size}。", "{organ}内可见一{size}{echo}{lesion}，边界清。"),
}
DENIED = {
    "en": ("No {lesion} or {other} is seen in the {organ}.", "The {organ} is without {lesion}."),
    "zh": ("{organ}未见明显{lesion}及{other}。", "{organ}无{lesion}。"),
}
OPEN = {
    "en": ("A {lesion} in the {organ} cannot be excluded.", "Possible {lesion} of the {organ}."),
    "zh": ("{organ}{lesion}不除外。", "{organ}可疑{lesion}。"),
}


@st.composite
def written(draw: st.DrawFn) -> tuple[str, set[Fact]]:
    """Write a report of one language, with the facts of its findings: one for each of some organs, each of one side."""
    language = draw(st.sampled_from(("en", "zh")))
    organs = draw(
        st.lists(st.sampled_from([organ for organ, spoken in ORGANS if spoken == language]), unique=True, min_size=1)
    )
    text, expected = "", set[Fact]()
    for organ in organs:
        side = draw(st.sampled_from((Side.LEFT, Side.RIGHT)))
        lesion, other = draw(st.permutations(list(LESIONS)))[:2]
        echo, tenths = draw(st.sampled_from(list(ECHOES))), draw(st.integers(20, 400))
        form = draw(st.sampled_from((STATED, DENIED, OPEN)))
        template = draw(st.sampled_from(form[language]))
        size = draw(st.sampled_from((f"{tenths / 10:g} mm", f"{tenths / 100:g}cm", f"{tenths / 10:g} x 1.5 mm")))
        said = {"lesion": lesion, "other": other, "echo": echo, "size": size}
        if language == "zh":
            said |= {"lesion": LESIONS[lesion], "other": LESIONS[other], "echo": ECHOES[echo]}
        text += template.format(organ=ORGANS[organ, language].format(side=SIDES[side, language]), **said)
        expected |= {Fact(Kind.ORGAN, organ, None), Fact(Kind.SIDE, organ, side)}
        if form is STATED:
            expected |= {Fact(Kind.LESION, organ, side, lesion), Fact(Kind.ECHOGENICITY, organ, side, echo)}
            expected.add(Fact(Kind.SIZE, organ, side, tenths / 10))
        if "边界清" in template:
            expected.add(Fact(Kind.MARGIN, organ, side, "circumscribed"))
        if form is DENIED:
            named = [lesion, other] if "{other}" in template else [lesion]
            expected |= {Fact(Kind.LESION, organ, side, f"no {name}") for name in named}
    return text, expected


@given(written())
def test_generated_reports_are_read_as_they_were_meant(report: tuple[str, set[Fact]]) -> None:
    text, expected = report
    found = {
        Fact(fact.kind, fact.organ, fact.side, round(fact.value, 6) if isinstance(fact.value, float) else fact.value)
        for fact in read_facts(text).stated
    }
    assert found == expected, text


WORDS = st.sampled_from(
    [*words.vocabulary(), "12 mm", "1.2x0.8cm", "BI-RADS 4a", "TI-RADS", ",", "。", ".", "?", "、", "\n", "3-"]
)


@settings(max_examples=300)
@given(st.one_of(st.text(), st.lists(WORDS).map(" ".join), st.lists(WORDS).map("".join)))
def test_any_text_is_read(text: str) -> None:
    found = read_facts(text)
    assert len(set(found.stated)) == len(found.stated)
    assert all(fact.side is not Side.BOTH for fact in found.stated)


@pytest.mark.parametrize(
    ("text", "mm"),
    [
        ("nodule 1.2 x 0.8 cm", [12]),
        ("结节约12×8mm", [12]),
        ("结节1.2*0.8*0.5厘米", [12]),
        ("结节１２ｍｍ", [12]),
        ("nodule of 8 mm x 1.1 cm", [11]),
        ("a 5-mm nodule", [5]),
        ("nodules of 4 mm and 7 mm", [4, 7]),
        ("nodule 5-8 mm", []),
        ("nodule <5 mm", []),
        ("nodule smaller than 5 mm", []),
        ("nodule 3 cm from the nipple", []),
        ("结节距体表约3mm", []),
        ("85 cm/s", []),
        ("12 cm2", []),
        ("120 mmHg", []),
        ("no nodule larger than 5 mm", []),
    ],
)
def test_sizes(text: str, mm: list[float]) -> None:
    assert [fact.value for fact in read_facts(text).of(Kind.SIZE)] == mm


@pytest.mark.parametrize(
    ("text", "kind", "category"),
    [
        ("BI-RADS 4A类", Kind.BIRADS, ["4a"]),
        ("BIRADS: category 0", Kind.BIRADS, ["0"]),
        ("BI-RADS分类：Ⅳb类", Kind.BIRADS, ["4b"]),
        ("BI-RADS category IV", Kind.BIRADS, ["4"]),
        ("BI-RADS 3-4a", Kind.BIRADS, []),
        ("BI-RADS 7", Kind.BIRADS, []),
        ("BI-RADS 45", Kind.BIRADS, []),
        ("ACR TI-RADS 5", Kind.TIRADS, ["5"]),
        ("C-TIRADS 4a类", Kind.TIRADS, ["4a"]),
        ("TR3", Kind.TIRADS, ["3"]),
        ("TR 3", Kind.TIRADS, []),
    ],
)
def test_categories(text: str, kind: Kind, category: list[str]) -> None:
    assert [fact.value for fact in read_facts(text).of(kind)] == category


HOSTILE = (
    "no ",
    "possible cyst ",
    "no cyst, ",
    "1x",
    "1.2 x ",
    "left ",
    "left and ",
    "left breast, ",
    "左",
    "结节、",
    "bi-rads ",
    "a",
)


def work(text: str) -> int:
    """Count the lines of code that reading a text runs."""
    lines, folder = 0, str(Path(facts.__file__).parent)

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.startswith(folder):
            return None
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        read_facts(text)
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.parametrize("unit", HOSTILE)
def test_work_grows_with_the_text_and_no_faster(unit: str) -> None:
    once, twice = work(unit * 300), work(unit * 600)
    assert twice < 2.1 * once


def test_no_pattern_repeats_without_bound() -> None:
    """Then matching at one place takes a bounded time; the rest is Python, whose lines the test before counts."""
    for module in (tokens, places):
        for pattern in (found.pattern for found in vars(module).values() if isinstance(found, re.Pattern)):
            plain = re.sub(r"\\.|\[[^\]]*\]", "x", pattern).replace("}+", "}")
            assert not re.search(r"[*+]|\{\d*,\}", plain), pattern


def test_facts_are_listed_in_order_and_once() -> None:
    read = read_facts("Left breast: nodule of 8 mm. Impression: nodule, left breast. Right breast: no nodule.")
    assert isinstance(read, Facts)
    assert [fact.value for fact in read.of(Kind.LESION)] == ["nodule", "no nodule"]
