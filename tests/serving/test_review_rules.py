"""The rules that read a finished text: each fires on what it is for, and none on a report that is right."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from demo.dicom_writer import dicom_bytes
from demo.simulate import Study, simulate
from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.client.wire.requests import ReportRequest
from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.contracts.request import Box, Examination, FinishReason, ImageInput, Picture, Source
from echovlm_edge.runtime.contracts.tasks import Language, Region, Task
from echovlm_edge.runtime.serving.review.reviewed import Asked, Reviewed
from echovlm_edge.runtime.serving.review.rules import RULES, notes, rules_but
from echovlm_edge.runtime.serving.supervision import from_settings
from echovlm_edge.runtime.serving.supervision.serve_settings import settings_of
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions
from tests.support.dicom_files import encode
from tests.support.telling_engine import TellingEngine

EN = (
    "Ultrasound findings: In the left breast there is a hypoechoic nodule with smooth margin, measuring 18 mm. No enlarged axillary "
    "lymph nodes. Ultrasound impression: Solid nodule, left breast, BI-RADS 4A."
)
ZH = "超声所见：左侧乳腺见低回声实性结节，边缘光整，约18mm，CDFI未见明显血流信号。超声提示：左侧乳腺实性结节，BI-RADS 4A类。"
REPORT = Asked(Task.REPORT, Language.EN, Region.BREAST)
BERICHT = Asked(Task.REPORT, Language.ZH, Region.BREAST)
BREAST = Examination("left", "BREAST", 60.0)


def picture(
    examination: Examination = BREAST, number: int = 1, unlike: bool = False, of_study: bool = False
) -> Picture:
    source = Source(0, 1, 60, 80, Box(0, 0, 80, 60), examination=examination)
    return Picture(number, of_study, source, 56, 84, 6, unlike_ultrasound=unlike)


def applied(
    text: str, asked: Asked = REPORT, *shown: Picture, finish: FinishReason = FinishReason.STOP
) -> dict[str, str]:
    """The notes about a text, by the names of their rules."""
    reviewed = Reviewed(text, finish, asked, shown or (picture(),))
    return {name: note for name, rule in RULES.items() if (note := rule(reviewed))}


@pytest.mark.parametrize(("text", "asked"), [(EN, REPORT), (ZH, BERICHT)])
def test_a_report_that_is_right_has_no_note(text: str, asked: Asked) -> None:
    assert applied(text, asked) == {}


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("repetition", EN + " The nodule is solid. The nodule is solid. The nodule is solid. The nodule is solid."),
        ("repetition", EN + " no" * 12),
        ("repetition", EN + " A calcificacificacificacifica"),
        ("repetition", ZH + "边界清" * 6),
        ("repetition", EN + " 1." + " A cyst of the upper outer quadrant is seen there; it is simple." * 3),
        ("ending", ""),
        ("ending", EN[: EN.index("lymph")] + "and"),
        ("ending", "Ultrasound impression: nodule, "),
        ("ending", "超声提示：左侧乳腺结节，大小约"),
        ("impression", EN[: EN.index("Ultrasound impression")]),
        ("impression", "Ultrasound findings: nodule. Ultrasound impression:"),
        ("script", EN + "结节，边界清"),
        ("script", EN + " \ufffd"),
        ("script", EN + " опухоль"),
        ("script", EN + " 결절"),
        ("script", EN + " Ã¤ndert"),
        ("side", EN.replace("left", "right")),
        (
            "organ",
            EN.replace("breast", "kidney").replace("axillary lymph nodes", "ureters").replace(", BI-RADS 4A", ""),
        ),
        ("size", EN.replace("18 mm", "6.4 cm")),
    ],
)
def test_each_rule_finds_what_it_is_for(rule: str, text: str) -> None:
    assert rule in applied(text)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("repetition", ZH + "边界清。" * 12),
        ("ending", "超声所见：左乳见"[:-1] + "结节，"),
        ("impression", ZH[: ZH.index("超声提示")]),
        ("script", EN),
        ("script", "Solid nodule left."),
        ("side", ZH.replace("左", "右")),
        ("organ", ZH.replace("乳腺", "肾").replace("，BI-RADS 4A类", "")),
        ("size", ZH.replace("18mm", "7.5cm")),
    ],
)
def test_notes_about_a_chinese_request_are_chinese(rule: str, text: str) -> None:
    note = applied(text, BERICHT)[rule]
    assert note.endswith("。") and not note.isascii()


def test_a_limit_that_ends_a_text_is_said() -> None:
    assert "cut off" in applied(EN, finish=FinishReason.LENGTH)["ending"]


def test_a_cancelled_text_has_no_notes() -> None:
    assert notes(Reviewed("", FinishReason.CANCELLED, REPORT), rules_but(())) == ()


UNLIKE = (picture(number=1), picture(number=2, unlike=True), picture(number=3, unlike=True, of_study=True))


def test_pictures_are_named() -> None:
    assert applied(EN, REPORT, *UNLIKE)["picture"] == "Hardly an ultrasound picture: image 2, study image 3."
    assert applied(ZH, BERICHT, *UNLIKE)["picture"] == "图像2、检查图像3不像超声图像。"


OTHER = Examination("right", "BREAST", 60.0)
UNKNOWN = Examination()


@pytest.mark.parametrize(
    ("text", "asked", "shown"),
    [
        # A side or a size where a picture's is not known, or the pictures have both sides.
        (EN.replace("left", "right"), REPORT, (picture(), picture(UNKNOWN))),
        (EN.replace("left", "right"), REPORT, (picture(), picture(OTHER))),
        (EN.replace("left breast there", "left breast and in the right breast there"), REPORT, (picture(),)),
        (EN.replace("18 mm", "64 mm"), REPORT, (picture(), picture(UNKNOWN))),
        (EN.replace("18 mm", "62 mm"), REPORT, (picture(),)),
        # A lobe of the liver is no side of the body, and a report about it names its neighbours.
        (
            "Findings: cyst in the right lobe of the liver. Impression: liver cyst.",
            Asked(Task.REPORT),
            (picture(Examination("left")),),
        ),
        (
            "Findings: the gallbladder contains stones. Impression: gallstones.",
            Asked(Task.REPORT, Language.EN, Region.LIVER),
            (picture(Examination(body_part="ABDOMEN")),),
        ),
        # An organ that is not named contradicts nothing.
        ("Findings: a cyst of 8 mm. Impression: simple cyst.", REPORT, (picture(),)),
        # Chinese reports have English in them.
        (ZH + "CDFI：RI 0.68，PSV 85cm/s，EDV 20cm/s，TI-RADS 3，LVEF 65%，E/A>1。", BERICHT, (picture(),)),
        # Lists repeat words; both kidneys are described alike.
        (
            "Findings: The left kidney shows no stone or mass. The right kidney shows no stone or mass. Impression: normal kidneys.",
            Asked(Task.REPORT),
            (picture(UNKNOWN),),
        ),
        # Own words may ask for anything: no impression, a language, another organ.
        ("这是左侧乳腺。", Asked(Task.QUESTION, words="Answer in Chinese: which side is it?"), (picture(),)),
        ("Left breast.", Asked(Task.REPORT, words="Name the organ."), (picture(),)),
        ("No", Asked(Task.QUESTION, words="Is there a stone in this kidney?"), (picture(),)),
        ("是的", Asked(Task.QUESTION, words="这是左侧吗？"), (picture(),)),
        ("Left.", Asked(Task.QUESTION, words="Which side is shown here?"), (picture(),)),
        ("A", Asked(Task.QUESTION, words="A or B?"), (picture(),)),
    ],
)
def test_what_may_be_right_has_no_note(text: str, asked: Asked, shown: tuple[Picture, ...]) -> None:
    assert applied(text, asked, *shown) == {}


@pytest.mark.parametrize(
    ("text", "words", "noted"),
    [
        ("左侧乳腺结节。", "Which side is shown here, please?", True),
        ("Nodule of the left breast.", "图像显示哪个器官？", True),
        ("Nodule of the left breast.", "Which side is shown here, please?", False),
        ("左侧乳腺结节。", "图像显示哪个器官？", False),
    ],
)
def test_an_answer_is_in_the_language_of_its_question(text: str, words: str, noted: bool) -> None:
    assert ("script" in applied(text, Asked(Task.QUESTION, words=words))) == noted


JUDGE, OPTIONS = Asked(Task.JUDGE, words="The nodule is solid."), Asked(Task.CHOICE, words="A. Cyst. B. Solid nodule.")


@pytest.mark.parametrize(
    ("text", "asked", "noted"),
    [
        ("True", JUDGE, False),
        ("该描述不正确。", JUDGE, False),
        ("A solid nodule in the left breast.", JUDGE, True),
        ("B", OPTIONS, False),
        ("The answer is B: solid nodule.", OPTIONS, False),
        ("D", OPTIONS, True),
        ("A or B", OPTIONS, True),
        ("A solid nodule in the left breast.", Asked(Task.QUESTION, words="What is it?"), False),
    ],
)
def test_an_answer_is_one_of_those_asked_for(text: str, asked: Asked, noted: bool) -> None:
    assert ("answer" in applied(text, asked)) == noted


@given(st.text(), st.sampled_from([REPORT, BERICHT, Asked(Task.QUESTION, words="Why?")]))
def test_any_text_can_be_reviewed(text: str, asked: Asked) -> None:
    assert all(isinstance(note, str) for note in applied(text, asked).values())


def test_long_texts_of_any_kind_have_no_loop() -> None:
    """Words drawn at random repeat, but not in a row; a loop that begins late is found."""
    words = [f"w{random.Random(seed).randrange(60)}" for seed in range(700)]
    assert "repetition" not in applied(" ".join(words))
    assert "repetition" in applied(" ".join([*words, *words[-50:], *words[-50:], *words[-50:]]))


@contextmanager
def served(text: str, finish: FinishReason = FinishReason.STOP, **options: object) -> Iterator[Connection]:
    server = ReportServer(TellingEngine(text, finish), ServerOptions("127.0.0.1:0", **options))  # type: ignore[arg-type]
    try:
        with Connection(server.address) as client:
            yield client
    finally:
        server.stop()


def noise() -> ImageInput:
    """A grey picture that is nothing, and so may be anything."""
    return ImageInput(encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (56, 56), dtype=np.uint8))))


def right_breast() -> Study:
    """A simulated study of the right breast."""
    studies = (simulate(seed) for seed in range(200))
    return next(
        one
        for one in studies
        if one.truth.region is Region.BREAST and one.truth.side and one.truth.side.value == "right"
    )


def test_notes_come_with_the_result_and_the_text_is_left_as_it_is() -> None:
    study = right_breast()
    file = ImageInput(dicom_bytes(study.image, study.truth, 1))
    with served(EN.replace("18 mm", "18 cm"), FinishReason.LENGTH) as client:
        *first, last = client.generate(ReportRequest(images=[file, noise()]))
        assert last.result.text == "".join(event.text for event in first) == EN.replace("18 mm", "18 cm")
        assert list(last.result.notes) == ["The text was cut off at the limit of tokens; its end is missing."]
        *_, last = client.generate(ReportRequest(images=[file]))
        sides = "The text names the left side, the files say right."
        assert sides in last.result.notes and any("180 mm" in note for note in last.result.notes)


def test_notes_come_in_a_study_and_about_its_pictures() -> None:
    blank = ImageInput(encode(Image.fromarray(np.full((60, 80, 3), 90, np.uint8))))
    with served(EN) as client:
        study = client.begin_study()
        client.add_image(study, blank)
        *_, last = client.generate(ReportRequest(images=(), study=study))
    assert list(last.result.notes) == ["Hardly an ultrasound picture: study image 1."]


def test_rules_can_be_left_out() -> None:
    settings = settings_of(None, {"bundle": "/b", "no_note": ("ending", "impression")})
    rules = from_settings.server_options(settings).rules
    with served("Nodule, left breast, BI-RADS 3 and", rules=rules) as client:
        *_, last = client.generate(ReportRequest(images=[noise()]))
    assert not last.result.notes
    with pytest.raises(InvalidInput, match="There is no note sides to leave out: choose from repetition, ending"):
        rules_but(["sides"])


def test_every_note_is_described_with_the_option() -> None:
    described = from_settings.ServeSettings.model_fields["no_note"].description or ""
    assert described.partition(": ")[2].split(", ") == list(RULES)


def test_the_result_has_a_field_for_them() -> None:
    assert pb.Result(notes=["Check it."]).notes == ["Check it."]
