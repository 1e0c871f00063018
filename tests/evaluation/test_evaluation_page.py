"""The pages of an evaluation and of a comparison in headless Chromium, from a file with the network blocked; axe-core."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from echovlm_edge.runtime.evaluation.comparison import compare
from echovlm_edge.runtime.evaluation.drawing.comparison_page import comparison_page
from echovlm_edge.runtime.evaluation.drawing.evaluation_page import evaluation_page
from echovlm_edge.runtime.profiling.drawing.rendering import plotting_library
from tests.support.evaluations import evaluated

for module in ("playwright", "axe_playwright_python", "vl_convert"):
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed: the page was not opened", allow_module_level=True)

from axe_playwright_python.sync_playwright import Axe  # noqa: E402
from playwright.sync_api import Browser, Page  # noqa: E402

from tests.support.browser import chromium, opened  # noqa: E402


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of 42 rows of every kind."""
    folder = tmp_path_factory.mktemp("page")
    evaluation = evaluated(folder, 42)
    (folder / "evaluation.html").write_text(evaluation_page(evaluation, folder, plotting_library("")), encoding="utf-8")
    return folder / "evaluation.html"


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two runs, of which the second answers as the references."""
    folder = tmp_path_factory.mktemp("compared")
    found = compare(evaluated(folder, 42), evaluated(folder, 42, lambda row: row.reference), ("<i>int4</i>", "fp32"))
    (folder / "comparison.html").write_text(comparison_page(found, folder), encoding="utf-8")
    return folder / "comparison.html"


def chosen(page: Page, group: str, metric: str) -> None:
    page.select_option("#metric", metric)
    page.select_option("#group", group)
    page.wait_for_selector(f'body[data-drawn="{group} {metric}"]')


def test_an_evaluation_works_from_a_file_without_a_network(browser: Browser, file: Path) -> None:
    with opened(browser, file) as seen:
        page = seen.page
        assert (
            page.locator("#summary")
            .inner_text()
            .startswith("demo (int4, in process) answered 42 rows, and 1 was skipped. BLEU-1, characters is ")
        )
        tiles = [text.split("\n")[0] for text in page.locator("#tiles li").all_inner_texts()]
        assert tiles[0] == "BLEU-1, characters" and tiles[-3:] == ["facts", "accuracy, judgements", "accuracy, choices"]
        for chart in ("groups", "histogram"):
            assert page.locator(f'[data-chart="{chart}"] [role="graphics-symbol"]').count() >= 2, chart
        figures = page.locator("#figures tbody tr").all_inner_texts()
        assert any(text.startswith("BLEU-1, characters\t") and text.count("\t") == 3 for text in figures)
        assert page.locator("#skipped tbody tr").all_inner_texts() == [
            "data.json, row 99 (<b>none</b>)\thas no words in its answer"
        ]
        assert "Answers that were cut off at the limit of tokens: 1 row" in page.locator("#notes").inner_text()
        assert "BLEU-1\t53.87" in page.locator("#paper tbody tr").first.inner_text()
        assert seen.messages == [] and seen.requests == []


def test_the_worst_answers_are_shown_with_their_pictures(browser: Browser, file: Path) -> None:
    with opened(browser, file) as seen:
        chosen(seen.page, "task: findings", "BLEU-1, characters")
        worst = seen.page.locator("#worst > li")
        assert worst.count() == 5
        scores = [float(text.rpartition(": ")[2]) for text in worst.locator("h3").all_inner_texts()]
        assert scores == sorted(scores) and scores[0] < 100
        pictures = worst.first.locator("img")
        assert pictures.count() == 2
        for picture in pictures.all():
            assert picture.get_attribute("src", timeout=1000).startswith("data:image/jpeg;base64,")  # type: ignore[union-attr]
            assert picture.evaluate("image => image.naturalWidth") == 56 and picture.get_attribute("alt")
        assert worst.first.locator("h4").all_inner_texts() == ["Reference", "Answer"]
        assert "findings, " in worst.first.locator(".note").inner_text()


def test_a_group_shows_its_own_figures(browser: Browser, file: Path) -> None:
    with opened(browser, file) as seen:
        chosen(seen.page, "task: judge", "accuracy, judgements")
        assert [text.split("\t")[0] for text in seen.page.locator("#figures tbody tr").all_inner_texts()] == [
            "accuracy, judgements",
            "unanswered, judgements",
        ]
        chosen(seen.page, "task: judge", "BLEU-1, characters")  # which judgements do not have
        assert not seen.page.locator("#worst-section").is_visible()


def test_a_comparison_says_what_is_better(browser: Browser, compared: Path) -> None:
    with opened(browser, compared) as seen:
        page = seen.page
        assert page.locator("#summary").inner_text().startswith("fp32 compared with <i>int4</i> over 42 shared rows: ")
        rows = {
            text.split("\t")[0]: text.split("\t")[1] for text in page.locator("#compared tbody tr").all_inner_texts()
        }
        assert rows["BLEU-1, characters"] == "better" and set(rows.values()) <= {"better", "the same", "cannot tell"}
        assert page.locator('[data-chart="changes"] [role="graphics-symbol"]').count() >= 10
        assert page.locator("#changed > li").count() >= 1
        assert page.locator("#changed > li").first.locator("h4").all_inner_texts() == [
            "Reference",
            "<i>int4</i>",
            "fp32",
        ]
        picture = page.locator("#changed img").first
        assert picture.evaluate("image => image.naturalWidth") == 56 and picture.get_attribute("alt")
        assert seen.messages == [] and seen.requests == []


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_for_axe_and_nothing_sticks_out(
    browser: Browser, file: Path, compared: Path, width: int, dark: bool
) -> None:
    for page_file in (file, compared):
        with opened(browser, page_file, width, 1100, dark) as seen:
            assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
            found = Axe().run(seen.page).response["violations"]
            assert [(one["id"], one["help"], [node["html"] for node in one["nodes"]][:3]) for one in found] == []
