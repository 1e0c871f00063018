"""The table that chooses region, language and prompt."""

from __future__ import annotations

from pathlib import Path

import pytest

from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.tasks import Language, Region
from echovlm_edge.runtime.dicom_node.reporting.questions import Facts, Question, Row, ask, read_questions


def facts(**values: str) -> Facts:
    return Facts(**{name: frozenset(value.split("|")) for name, value in values.items()})


@pytest.mark.parametrize(
    ("found", "region"),
    [
        (facts(), None),
        (facts(body_part="BREAST"), Region.BREAST),
        (facts(body_part="BREAST|THYROID"), None),  # of two regions
        (facts(body_part="SKULL"), None),
        (facts(anatomic_region="69748006|THYROID GLAND"), Region.THYROID),
        (facts(body_part="HEART", description="US LIVER"), Region.HEART),  # a body part says more than a description
        (facts(description="US LEBER|ABDOMEN"), None),
        (facts(description="RENAL ULTRASOUND"), Region.KIDNEY),
        (facts(description="LIVER AND KIDNEY RENAL"), None),
        (facts(description="超声 甲状腺"), Region.THYROID),
    ],
)
def test_the_region_is_what_the_images_say_or_none(found: Facts, region: Region | None) -> None:
    assert ask(found, (), Language.EN).region is region


def test_the_first_row_that_gives_a_part_decides_it() -> None:
    rows = [
        Row("zh", {"ae_title": ("ZH*",)}, None, Language.ZH),
        Row(
            "clinic",
            {"ae_title": ("*",), "description": ("*MAMMA*", "*BRUST*")},
            Region.BREAST,
            Language.EN,
            "Say more.",
        ),
        Row("never", {"ae_title": ("*",)}, Region.HEART, None, "Other."),
    ]
    found = facts(ae_title="ZH1", description="BRUST LINKS", body_part="LIVER")
    assert ask(found, rows, Language.EN) == Question(Region.BREAST, Language.ZH, "Say more.", ("clinic", "zh"))
    assert ask(facts(ae_title="X"), rows, Language.ZH) == Question(Region.HEART, Language.ZH, "Other.", ("never",))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[a]\nregion = 'head'", "wrong at a"),
        ("[a]\nlanguage = 'de'", "wrong at a"),
        ("[a]\ntitle = 'x'", "unknown key, a.title"),
        ("a = 1", "give each row a table"),
        ("[a", "is not TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_name(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "questions.toml"
    path.write_text(text)
    with pytest.raises(NotPossibleHere, match=words):
        read_questions(path)
