"""What goes wrong on the console: a bad file hides no good ones, errors are said in the page's language and lose no sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from echovlm_edge.runtime.contracts.statuses import CODES, REASONS
from tests.support.dicom_files import png
from tests.support.http_door import http_server
from tests.support.telling_engine import TellingEngine

for module in ("playwright", "axe_playwright_python"):
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed: the page was not opened", allow_module_level=True)

from axe_playwright_python.sync_playwright import Axe  # noqa: E402
from playwright.sync_api import Browser, Page, expect  # noqa: E402

from tests.support.browser import chromium, visited  # noqa: E402

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "runtime/serving/http/console/page"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with http_server(TellingEngine("A cyst.")) as (server, _):
        yield server.http_address


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two pictures, and between and behind them files that are none."""
    whole = png(80, 60)
    for name, data in (("a.png", whole), ("b.png", whole[:200]), ("c.png", png(60, 80)), ("d.png", b"no picture")):
        (tmp_path / name).write_bytes(data)
    return [tmp_path / f"{name}.png" for name in "abcd"]


def nothing_for_axe(page: Page) -> None:
    found = Axe().run(page).response["violations"]
    assert [(one["id"], [node["html"] for node in one["nodes"]][:3]) for one in found] == []


@pytest.mark.parametrize("dark", [False, True])
def test_bad_files_hide_no_good_ones(browser: Browser, address: str, files: list[Path], dark: bool) -> None:
    with visited(browser, address, dark=dark) as seen:
        page = seen.page
        page.locator("body[data-ready]").wait_for()
        page.set_input_files("#files", files)
        expect(page.locator("#pictures-problem p")).to_have_count(2)
        expect(page.locator("#strip img")).to_have_count(2)
        first, second = page.locator("#pictures-problem p").all_inner_texts()
        assert "is b.png.)" in first and "is d.png.)" in second
        labels = page.locator("#strip button").evaluate_all("all => all.map(one => one.ariaLabel)")
        assert labels == ["a.png, frame 1 of 1", "c.png, frame 1 of 1"]
        assert page.locator("#sum").inner_text().startswith("2 pictures")
        page.locator("#strip button").nth(1).click()
        assert page.locator("#viewer img").get_attribute("alt") == "c.png, frame 1 of 1"
        nothing_for_axe(page)
        for name in ("b.png", "d.png"):
            page.get_by_role("button", name=f"Remove {name}").click()
        expect(page.locator("#pictures-problem")).to_be_empty()
        expect(page.locator("#strip img")).to_have_count(2)


def test_files_that_are_all_bad_are_all_named(browser: Browser, address: str, files: list[Path]) -> None:
    with visited(browser, address) as seen:
        page = seen.page
        page.locator("body[data-ready]").wait_for()
        page.set_input_files("#files", [files[1], files[3]])
        expect(page.locator("#pictures-problem p")).to_have_count(2)
        expect(page.locator("#strip img")).to_have_count(0)
        expect(page.locator("#sum")).to_be_empty()


def test_errors_are_said_in_chinese_with_the_server_s_sentence(
    browser: Browser, address: str, files: list[Path]
) -> None:
    with visited(browser, address, locale="zh-CN") as seen:
        page = seen.page
        page.locator("body[data-ready]").wait_for()
        page.set_input_files("#files", files[1])
        problem = page.locator("#pictures-problem p")
        expect(problem).to_contain_text("输入有误或无法读取。服务器原文：")
        chinese = problem.inner_text()
        nothing_for_axe(page)
        page.locator("#language").click()
        english = problem.inner_text()
        assert english.endswith("(Image 1 is b.png.)")
        assert english.removesuffix(" (Image 1 is b.png.)") in chinese
        page.locator("#language").click()
        assert problem.inner_text() == chinese
        # The same call among the last errors of the service.
        page.locator("#tab-service").click()
        row = page.locator("#panel-service tbody tr").filter(has_text="请求有误").first
        expect(row).to_contain_text("查看图像")
        expect(row).to_contain_text("HTTP")
        assert row.locator("span").first.get_attribute("title") == "invalid_argument"
        nothing_for_axe(page)
        page.locator("#language").click()
        expect(page.locator("#panel-service tbody tr").filter(has_text="Wrong request").first).to_contain_text(
            "pictures"
        )


def words() -> set[str]:
    return set(re.findall(r'^  "([\w.-]+)": \[', (PAGE / "words.js").read_text(encoding="utf-8"), re.M))


def test_every_kind_of_error_and_every_method_has_words() -> None:
    table = (ROOT / "docs/http.md").read_text(encoding="utf-8").split("## Errors")[1].split("## Limits")[0]
    documented = set(re.findall(r"`([a-z_]+)`", table)) - {"code", "message", "type", "param"}
    assert {"busy", "unusable_form", "wrong_host", "unavailable"} <= documented
    reasons = {reason.lower() for reason in REASONS.values()} | {code.name.lower() for code in CODES.values()}
    assert {f"kind.{code}" for code in documented | reasons} <= words()
    proto = (ROOT / "proto/echovlm/v1/report.proto").read_text(encoding="utf-8")
    assert {f"method.{name}" for name in re.findall(r"^  rpc (\w+)\(", proto, re.M)} | {
        "method.ShowPictures"
    } <= words()


def test_every_word_that_the_page_asks_for_is_there() -> None:
    asked = {
        key for file in PAGE.glob("*.js") for key in re.findall(r'\bt\("([\w.]+)"', file.read_text(encoding="utf-8"))
    }
    assert asked and asked <= words()


def test_of_two_files_that_differ_the_later_one_is_left_out(browser: Browser, address: str) -> None:
    place = "async ([message, files]) => (await import('/console/problems.js')).placeOf({ message }, files)"
    with visited(browser, address) as seen:
        seen.page.locator("body[data-ready]").wait_for()
        for message, expected in (
            ("image 1 and image 3 differ in PatientID: send the images of one patient at a time.", 2),
            ("The file of image 2 cannot be read.", 1),
            ("Image 4 cannot be read.", -1),
            ("The call asks for 130 frames, more than 128.", -1),
        ):
            assert seen.page.evaluate(place, [message, ["a", "b", "c"]]) == expected
