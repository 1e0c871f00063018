"""The console in headless Chromium: from files to a DICOM SR in both themes and languages, from the keyboard, by axe-core."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from demo.dicom_writer import dicom_bytes
from demo.simulate import simulate
from echovlm_edge.runtime.bundle.loads import RefusedBundle
from echovlm_edge.runtime.contracts.request import (
    Event,
    Finished,
    FinishReason,
    GenerationRequest,
    Stage,
    StageStarted,
    TextDelta,
)
from echovlm_edge.runtime.serving.access.clients import ClientsFile
from echovlm_edge.runtime.serving.http.console.study_folder import read_study
from echovlm_edge.runtime.serving.http.exchange.door_options import HttpOptions
from echovlm_edge.runtime.serving.http.reports.pictures import MOST_SIDE
from echovlm_edge.runtime.serving.transport.server import ServerOptions
from tests.conftest import BuildBundle
from tests.support.clients_file import clients_file
from tests.support.demo_reports import CHECKPOINT
from tests.support.dicom_files import png, region, saved, ultrasound
from tests.support.http_door import http_server
from tests.support.running_server import Running, running
from tests.support.telling_engine import TellingEngine
from tests.support.waiting import wait_for

for module in ("playwright", "axe_playwright_python"):
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed: the page was not opened", allow_module_level=True)

from axe_playwright_python.sync_playwright import Axe  # noqa: E402
from playwright.sync_api import Browser, Page, expect  # noqa: E402

from tests.support.browser import Opened, chromium, visited  # noqa: E402

SEED, FRAMES = 23, 3  # the demo's study
WAYS = (("light", 1360, "en-US"), ("dark", 820, "zh-CN"))  # theme, width and language


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a simulated study, and of one frame as a machine's whole screen, of which a part is the picture."""
    folder, simulated = tmp_path_factory.mktemp("study"), simulate(SEED, FRAMES)
    for number, image in enumerate(simulated.images, 1):
        (folder / f"{number}.dcm").write_bytes(dicom_bytes(image, simulated.truth, SEED, number))
    return folder


@pytest.fixture(scope="module")
def served(build_bundle: BuildBundle, study: Path) -> Iterator[Running]:
    http = HttpOptions("127.0.0.1:0", study=read_study(study))
    with running(build_bundle(CHECKPOINT, precision="fp32"), ServerOptions(grace_seconds=0.2, http=http)) as server:
        yield server


def screen() -> bytes:
    """A DICOM file of a screen with a margin around its B-mode region."""
    canvas = Image.new("RGB", (480, 360), (20, 20, 20))
    canvas.paste(Image.fromarray(simulate(SEED, FRAMES).images[0]).convert("RGB").resize((300, 300)), (90, 30))
    dataset = ultrasound(np.asarray(canvas))
    dataset.SequenceOfUltrasoundRegions = [region(90, 30, 389, 329)]
    dataset.PatientID, dataset.PatientBirthDate, dataset.PatientSex = "P-17", "", ""
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    return saved(dataset)


def cine(frames: int) -> bytes:
    moving = np.random.default_rng(0).integers(0, 256, (frames, 84, 112), dtype=np.uint8)
    return saved(ultrasound(moving, "MONOCHROME2", NumberOfFrames=frames))


def nothing_for_axe(page: Page) -> None:
    found = Axe().run(page).response["violations"]
    assert [(one["id"], one["help"], [node["html"] for node in one["nodes"]][:3]) for one in found] == []


def ready(page: Page) -> None:
    page.locator("body[data-ready]").wait_for()
    expect(page.locator("#drop")).to_be_visible()


def quiet(seen: Opened) -> None:
    assert seen.messages == [] and seen.requests == []


def downloaded(page: Page, name: str, exact: bool = True) -> Path:
    with page.expect_download() as download:
        page.get_by_role("button", name=name, exact=exact).click()
    return Path(download.value.path())


@pytest.mark.parametrize(("theme", "width", "locale"), WAYS)
def test_the_whole_way_from_files_to_documents(
    browser: Browser, served: Running, study: Path, tmp_path: Path, theme: str, width: int, locale: str
) -> None:
    (tmp_path / "screen.dcm").write_bytes(screen())
    chinese = locale == "zh-CN"
    with visited(browser, served.server.http_address, width, 1000, theme == "dark", locale) as seen:
        page = seen.page
        ready(page)
        nothing_for_axe(page)
        page.set_input_files("#files", [tmp_path / "screen.dcm"])
        # What was cropped is drawn over the whole frame, and said.
        crop = page.locator("#viewer .kept")
        expect(crop).to_have_attribute("width", "300")
        assert (crop.get_attribute("x"), crop.get_attribute("y")) == ("90", "30")
        facts = page.locator("#viewer .facts").inner_text()
        assert "300 × 300" in facts and "480 × 360" in facts and "screen.dcm" in facts
        assert page.locator("#sum").inner_text().startswith("1 ")
        page.locator("#write").click()
        expect(page.locator("#text h3")).to_have_text(
            ["超声所见", "超声提示"] if chinese else ["Findings", "Impression"]
        )
        expect(page.locator("#downloads button")).to_have_count(4)
        report = page.locator("#text").inner_text()
        assert ("乳腺" in report or "。" in report) if chinese else "." in report
        expect(page.locator("#notice")).to_be_in_viewport()
        assert "Draft, not reviewed by a clinician." in page.locator("#notice").inner_text()
        # Documents of the same result, about the same patient.
        document = pydicom.dcmread(downloaded(page, "DICOM SR"))
        assert document.PatientID == "P-17" and document.Modality == "SR"
        assert json.loads(downloaded(page, "FHIR").read_text())["resourceType"] == "DiagnosticReport"
        text = downloaded(page, "文本" if chinese else "Text").read_text()
        assert "Draft, not reviewed by a clinician." in text
        assert all(line in text for line in page.locator("#notes li").all_inner_texts())
        # Where the time went, and a question about the same pictures.
        assert page.locator("#waterfall .row[data-stage=decode] rect").count() >= 1
        page.fill("#question", "在哪一侧？" if chinese else "Which side is it?")
        page.locator("#ask-button").click()
        expect(page.locator("#turns .reply")).not_to_be_empty()
        page.locator("#turns .reply").wait_for()
        nothing_for_axe(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.locator("#tab-service").click()
        expect(page.locator("#panel-service .slots i")).to_have_count(8)
        nothing_for_axe(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        quiet(seen)


def test_a_refused_bundle_is_named_with_its_reason(browser: Browser) -> None:
    engine = TellingEngine("A cyst.")
    refused = RefusedBundle("echovlm-2", "Its golden tokens <b>differ</b>.")
    engine.info = replace(engine.info, refused_bundle=refused)
    with http_server(engine) as (server, _), visited(browser, server.http_address) as seen:
        page = seen.page
        page.locator("#tab-service").click()
        problem = page.locator("#panel-service .problem")
        expect(problem).to_have_text(
            "The bundle echovlm-2 should serve and was refused: Its golden tokens <b>differ</b>."
        )
        nothing_for_axe(page)
        quiet(seen)


def test_it_works_from_the_keyboard_alone(browser: Browser, served: Running) -> None:
    with visited(browser, served.server.http_address) as seen:
        page = seen.page
        expect(page.locator("#try")).to_be_visible()
        reach(page, "try")
        page.keyboard.press("Enter")
        expect(page.locator("#strip img")).to_have_count(3)
        reach(page, lambda: page.locator("#strip button:focus").count() == 1)
        page.keyboard.press("ArrowRight")
        page.keyboard.press("End")
        assert page.locator("#strip button:focus").get_attribute("data-place") == "2"
        assert page.locator("#viewer img").get_attribute("alt") == "3.dcm, frame 1 of 1"
        page.keyboard.press("Control+Enter")
        expect(page.locator("#downloads button")).to_have_count(4)
        reach(page, "unsure")
        before = page.locator("#text mark").count()
        page.keyboard.press("Space")
        assert page.locator("#text mark").count() == 0 and before > 0  # of this model's words one at least is unsure
        reach(page, "question")
        page.keyboard.type("What is it?")
        page.keyboard.press("Enter")
        expect(page.locator("#turns .reply")).not_to_be_empty()
        page.locator("#tab-report").focus()
        page.keyboard.press("ArrowRight")
        expect(page.locator("#panel-service .slots i")).to_have_count(8)
        page.keyboard.press("ArrowLeft")
        assert page.locator("#report").is_visible()
        quiet(seen)


def reach(page: Page, what: str | Callable[[], bool]) -> None:
    """Press Tab until the element of an id has the focus, or until something is so; each element on the way shows that it has it."""
    for _ in range(60):
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        if focused.count() and (focused.get_attribute("id") == what if isinstance(what, str) else what()):
            assert focused.evaluate("e => e.matches(':focus-visible')")
            return
    pytest.fail(f"the focus does not reach {what}")


def test_the_switches_change_language_and_theme_and_nothing_else(browser: Browser, served: Running) -> None:
    with visited(browser, served.server.http_address) as seen:
        page = seen.page
        page.locator("#try").click()
        expect(page.locator("#strip img")).to_have_count(3)
        page.locator("#write").click()
        expect(page.locator("#downloads button")).to_have_count(4)
        text, paper = (
            page.locator("#text p").all_inner_texts(),
            "getComputedStyle(document.documentElement).backgroundColor",
        )
        light = page.evaluate(paper)
        page.locator("#theme").click()
        assert page.evaluate(paper) != light
        page.locator("#language").click()
        assert page.locator("#text h3").all_inner_texts() == ["超声所见", "超声提示"]
        assert page.locator("#text p").all_inner_texts() == text
        assert page.evaluate("document.documentElement.lang") == "zh-CN"
        untranslated = page.evaluate(
            "[...document.querySelectorAll('[data-t]')].filter(e => !e.textContent).map(e => e.dataset.t)"
        )
        assert untranslated == []
        # Another examination leaves nothing of this one.
        page.locator("#clear").click()
        assert not page.locator("#report").is_visible() and page.locator("#drop").is_visible()
        quiet(seen)


def test_sixty_frames_hold_as_many_pictures_as_are_in_sight(browser: Browser, served: Running, tmp_path: Path) -> None:
    (tmp_path / "cine.dcm").write_bytes(cine(60))
    with visited(browser, served.server.http_address) as seen:
        page = seen.page
        ready(page)
        page.locator("#frames").fill("60")
        page.set_input_files("#files", [tmp_path / "cine.dcm"])
        expect(page.locator("#strip button")).to_have_count(60)
        pictures = page.locator("#strip img")
        for share in (0, 0.5, 1):
            page.locator("#strip").evaluate("(strip, share) => strip.scrollTo(share * strip.scrollWidth, 0)", share)
            wait_for(lambda: bool(in_sight(page)) and all(in_sight(page)))
            assert 0 < pictures.count() <= 20
        assert all(width <= MOST_SIDE for width in pictures.evaluate_all("all => all.map(one => one.naturalWidth)"))
        expect(page.locator("#sum")).to_contain_text("60 pictures, 720 of ")
        quiet(seen)


def in_sight(page: Page) -> list[bool]:
    """Whether each frame within the row's edges has its picture."""
    found: list[bool] = page.locator("#strip").evaluate(
        """strip => [...strip.querySelectorAll("button")].filter(one => {
             const [own, row] = [one.getBoundingClientRect(), strip.getBoundingClientRect()];
             return own.right > row.left && own.left < row.right;
           }).map(one => one.querySelector("img") !== null)"""
    )
    return found


def token(text: str | bytes, probability: float) -> dict[str, Any]:
    data = text if isinstance(text, bytes) else text.encode()
    return {"text": data.decode(errors="replace"), "bytes": list(data), "log_probability": math.log(probability)}


WORDS: tuple[tuple[str, list[dict[str, Any]], dict[str, float]], ...] = (
    ("A cyst.", [token("A", 0.9), token(" cyst", 0.5), token(".", 0.1)], {"cyst": 0.5}),  # a full stop is no word
    ("A cyst.", [token("A", 0.9), token(" c", 0.7), token("yst", 0.7), token(".", 0.9)], {"cyst": 0.49}),
    ("10 mm", [token("1", 0.5), token("0", 0.4), token(" mm", 0.9), token("<end>", 0.1)], {"10": 0.2}),
    ("右侧囊肿。", [token("右侧", 0.9), token("囊肿", 0.3), token("。", 0.2)], {"囊肿": 0.3}),
    ("光整", [token("光".encode()[:2], 0.5), token("光".encode()[2:], 0.5), token("整", 0.9)], {"光": 0.25}),
    ("约10mm", [token("约", 0.9), token("10", 0.5), token("mm", 0.9)], {"10mm": 0.45}),
    ("", [token("<end>", 0.1)], {}),
)


def test_a_word_is_as_likely_as_its_tokens_together(browser: Browser, served: Running) -> None:
    marks = "async ([text, tokens]) => (await import('/console/writing.js')).marks(text, tokens)"
    with visited(browser, served.server.http_address) as seen:
        for text, tokens, marked in WORDS:
            found = seen.page.evaluate(marks, [text, tokens])
            words = {
                "".join(letter for letter, _ in run): probability
                for probability, run in groupby(zip(text, found, strict=True), key=lambda pair: pair[1])
                if probability is not None
            }
            assert words == {word: pytest.approx(probability) for word, probability in marked.items()}


class Waiting(TellingEngine):
    """Writes a word, and waits until nobody waits for the next one."""

    ended = False

    def generate(self, request: GenerationRequest, stopped: Callable[[], bool]) -> Iterator[Event]:
        yield StageStarted(Stage.PREFILL)
        yield TextDelta("Ultrasound findings: A cyst")
        wait_for(stopped)
        self.ended = True
        yield Finished("", (1,), FinishReason.CANCELLED, 1, 0, {}, None)


def test_stop_ends_the_writing_here_and_there(browser: Browser, tmp_path: Path) -> None:
    engine = Waiting("")
    (tmp_path / "a.png").write_bytes(png(80, 60))
    (tmp_path / "b.png").write_bytes(png(80, 60)[:200])
    with http_server(engine) as (server, _), visited(browser, server.http_address) as seen:
        page = seen.page
        ready(page)
        page.set_input_files("#files", [tmp_path / "a.png"])
        expect(page.locator("#write")).to_be_enabled()
        page.locator("#write").click()
        expect(page.locator("#text p")).to_have_text("A cyst")
        assert page.locator("#write").is_hidden()
        page.locator("#stop").click()
        expect(page.locator("#notes li")).to_have_text("Stopped: the text is not complete.")
        wait_for(lambda: engine.ended)
        assert page.locator("#text p").inner_text() == "A cyst" and page.locator("#write").is_visible()
        # Another examination ends the writing, too, and nothing of it stays.
        engine.ended = False
        page.locator("#write").click()
        expect(page.locator("#text p")).to_have_text("A cyst")
        page.locator("#clear").click()
        wait_for(lambda: engine.ended)
        assert page.locator("#report").is_hidden() and page.locator("#write").is_visible()
        quiet(seen)
        # A file that cannot be read is named as it is called here.
        page.set_input_files("#files", [tmp_path / "a.png"])
        page.set_input_files("#files", [tmp_path / "b.png"])
        expect(page.locator("#pictures-problem")).to_contain_text("Image 2 is b.png.")
        page.get_by_role("button", name="Remove b.png").click()
        expect(page.locator("#pictures-problem")).to_be_empty()
        expect(page.locator("#strip img")).to_have_count(1)


def test_a_token_is_asked_for_and_kept_in_memory_alone(browser: Browser, tmp_path: Path) -> None:
    access = ClientsFile(clients_file(tmp_path, {"desk": {"token": "secret"}}))
    with (
        http_server(TellingEngine("A cyst."), access=access) as (server, _),
        visited(browser, server.http_address) as seen,
    ):
        page = seen.page
        expect(page.locator("#token")).to_be_focused()
        nothing_for_axe(page)
        assert page.locator("#panel-report").is_hidden() and page.locator("#tab-report").is_hidden()
        for token, known in (("wrong", False), ("secret", True)):
            page.fill("#token", token)
            page.keyboard.press("Enter")
            if not known:
                expect(page.locator("#sign-problem")).to_contain_text("does not know this token")
        expect(page.locator("#drop")).to_be_visible()
        kept: dict[str, Any] = page.evaluate(
            "({ local: localStorage.length, session: sessionStorage.length, cookie: document.cookie, url: location.href })"
        )
        assert kept == {"local": 0, "session": 0, "cookie": "", "url": f"http://{server.http_address}/"}
        assert "secret" not in page.content() and page.context.cookies() == []
        page.locator("#sign-out").click()
        expect(page.locator("#token")).to_be_visible()
        quiet(seen)
