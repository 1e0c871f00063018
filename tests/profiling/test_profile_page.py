"""The profile's page in headless Chromium, from a file with the network blocked: what it says, marks, sorting, themes, axe-core."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import pytest

from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.stages import ORDER, words
from echovlm_edge.runtime.profiling.drawing import html_page as page_module
from echovlm_edge.runtime.profiling.drawing.html_page import html_page
from echovlm_edge.runtime.profiling.schema import RooflinePoint
from tests.support.profiles import profile, with_everything

for module in ("playwright", "axe_playwright_python", "vl_convert"):
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed: the page was not opened", allow_module_level=True)

from axe_playwright_python.sync_playwright import Axe  # noqa: E402
from playwright.sync_api import Browser  # noqa: E402

from tests.support.browser import chromium, opened  # noqa: E402

CHARTS = ("comparison", "waterfall", "stages", "roofline", "histogram", "tokens")
WIDTHS = (1280, 768, 360)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of three runs; the last one's vision is slower."""
    runs = {}
    for seed, (label, factor) in enumerate((("main", 1.0), ("again", 1.0), ("<b>change</b>", 1.2))):
        told = with_everything(profile(seed, 30, slower={"vision": factor}))
        # Two points lie on each other, as they do where a model is small.
        points = tuple(RooflinePoint(name, 1e9, 3e10, 0.3) for name in ("vision", "projector", "prefill", "decode"))
        runs[label] = replace(told, workloads=(replace(told.workloads[0], roofline=points),))
    path = tmp_path_factory.mktemp("page") / "profile.html"
    path.write_text(html_page(runs), encoding="utf-8")
    return path


def test_it_works_from_a_file_without_a_network(browser: Browser, file: Path) -> None:
    with opened(browser, file) as seen:
        page = seen.page
        for chart in CHARTS:
            marks = page.locator(f'[data-chart="{chart}"] [role="graphics-symbol"]')
            assert marks.count() >= 3 and page.locator(f'[data-chart="{chart}"] svg').is_visible(), chart
        # The last run is shown, beside the first one; its label is text.
        assert (
            page.locator("#run").input_value() == "<b>change</b>" and page.locator("#baseline").inner_text() == "main"
        )
        rows = page.locator("#compared tbody tr").all_inner_texts()
        assert [row.split("\t")[0] for row in rows if row.split("\t")[1] == "slower"] == [
            "vision",
            "first token",
            "end to end",
        ]
        page.select_option("#run", "again")
        page.wait_for_selector('body[data-drawn="again W1"]')
        assert not [
            row for row in page.locator("#compared tbody tr").all_inner_texts() if row.split("\t")[1] == "slower"
        ]
        page.select_option("#run", "main")
        page.wait_for_selector('body[data-drawn="main W1"]')
        assert not page.locator("#comparison").is_visible()
        assert seen.messages == [] and seen.requests == []


def test_it_begins_with_what_it_found(browser: Browser, file: Path) -> None:
    with opened(browser, file) as seen:
        told = seen.page.locator("#summary").inner_text()
        assert told.startswith("W1, compared with main: 3 figures got slower, ") and told.endswith(".")
        seen.page.select_option("#run", "main")
        seen.page.wait_for_selector('body[data-drawn="main W1"]')
        told = seen.page.locator("#summary").inner_text()
        assert "first token" in told and "decode takes" in told


def test_tiles_stand_in_one_row_and_the_unknown_is_grey(browser: Browser, tmp_path: Path) -> None:
    told = profile(0)  # no energy
    figures = replace(told.workloads[0], memory={}, tpot=None)
    path = tmp_path / "unknown.html"
    path.write_text(html_page({"server": replace(told, workloads=(figures,))}), encoding="utf-8")
    with opened(browser, path) as seen:
        tiles = seen.page.locator("#tiles li")
        assert tiles.count() == 6
        assert len({box["y"] for tile in tiles.all() if (box := tile.bounding_box())}) == 1
        unknown = seen.page.locator("#tiles li.unknown")
        assert [text.split("\n")[0] for text in unknown.all_inner_texts()] == [
            "Per token",
            "Peak memory",
            "Energy a request",
        ]
        for tile in unknown.all():
            figure = tile.locator("strong")
            assert figure.inner_text() == "unknown"
            assert figure.evaluate("e => getComputedStyle(e).color") == tile.locator("span").first.evaluate(
                "e => getComputedStyle(e).color"
            )


def test_one_bar_shows_a_run_by_stage_in_the_order_of_time(browser: Browser, file: Path) -> None:
    with opened(browser, file) as seen:
        segments = seen.page.locator("#bar .segment")
        names = [segment.get_attribute("data-stage") for segment in segments.all()]
        assert names == [name for name in ORDER if name in names] and {"vision", "prefill", "decode"} <= set(names)
        boxes = [box for segment in segments.all() if (box := segment.bounding_box())]
        assert [box["x"] for box in boxes] == sorted(box["x"] for box in boxes)
        whole = seen.page.locator("#bar").bounding_box()
        assert whole and sum(box["width"] for box in boxes) == pytest.approx(whole["width"], rel=0.05)
        legend = seen.page.locator("#legend li").all_inner_texts()
        assert [text.split("\n")[0] for text in legend] == [words(name) for name in names if name]
        (decode,) = [text for text in legend if text.startswith("decode\n")]
        assert "20 tokens written" in decode and "ms" in decode and "%" in decode
        assert "451 prompt tokens" in seen.page.locator("#tokens").inner_text()


@pytest.mark.parametrize("width", WIDTHS)
def test_labels_of_charts_do_not_collide(browser: Browser, file: Path, width: int) -> None:
    with opened(browser, file, width) as seen:
        for chart in CHARTS:
            # Vega makes a label that would cover another one transparent.
            texts = seen.page.locator(f'[data-chart="{chart}"] svg text:not([opacity="0"])').all()
            boxes = [(text.inner_html(), box) for text in texts if text.inner_html() and (box := text.bounding_box())]
            assert len(boxes) >= 4
            for (one, first), (other, second) in combinations(boxes, 2):
                across = min(first["x"] + first["width"], second["x"] + second["width"]) - max(first["x"], second["x"])
                down = min(first["y"] + first["height"], second["y"] + second["height"]) - max(first["y"], second["y"])
                # Boxes hold room for ascenders and descenders: less than a third of a line is no collision.
                assert across <= -3 or down <= 5, (chart, one, other)


@pytest.mark.parametrize(
    ("chart", "says"),
    [
        ("stages", ("median", "95th percentile")),
        ("roofline", ("at most", "vision", "decode")),
        ("comparison", ("slower", "faster", "the same", "cannot tell", "95% interval", "within 5%")),
    ],
)
def test_marks_are_explained(browser: Browser, file: Path, chart: str, says: tuple[str, ...]) -> None:
    with opened(browser, file) as seen:
        section = seen.page.locator("section", has=seen.page.locator(f'[data-chart="{chart}"]'))
        told = section.locator(".key").inner_text()
        assert all(each in told for each in says)


def test_search(browser: Browser, file: Path) -> None:
    with opened(browser, file) as seen:
        page, table = seen.page, seen.page.locator("#operators tbody tr")
        assert table.count() == 16
        page.fill("#search", "prefill dualpath")
        assert table.count() == 4 and page.locator("#matches").inner_text() == "4 of 16 operators"
        assert all("DualPathMoE" in row and "prefill" in row for row in table.all_inner_texts())
        page.fill("#search", "nothing like it")
        assert table.count() == 0


def test_operators_are_sorted_by_any_column_from_the_keyboard(browser: Browser, file: Path) -> None:
    with opened(browser, file) as seen:
        page = seen.page

        def column(number: int) -> list[str]:
            return page.locator(f"#operators tbody tr td:nth-child({number})").all_inner_texts()

        def sorted_by() -> list[tuple[str, str | None]]:
            heads = page.locator("#operators th[aria-sort]").all()
            return [(head.inner_text().split("\n")[0].strip(" ▲▼"), head.get_attribute("aria-sort")) for head in heads]

        share = [float(text.rstrip("%")) for text in column(7)]
        assert sorted_by() == [("Share", "descending")] and share == sorted(share, reverse=True)
        layer = page.locator("#operators th button", has_text="Layer")
        layer.focus()
        page.keyboard.press("Enter")
        assert sorted_by() == [("Layer", "ascending")] and column(2) == sorted(column(2), key=str.casefold)
        page.keyboard.press("Space")
        assert sorted_by() == [("Layer", "descending")] and column(2) == sorted(
            column(2), key=str.casefold, reverse=True
        )
        each = page.locator("#operators th button", has_text="ms a call")
        each.click()
        numbers = [float(text) for text in column(6)]
        assert sorted_by() == [("ms a call", "descending")] and numbers == sorted(numbers, reverse=True)
        page.fill("#search", "decode")
        assert sorted_by() == [("ms a call", "descending")] and len(column(6)) == 8


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_for_axe_and_nothing_sticks_out(browser: Browser, file: Path, width: int, dark: bool) -> None:
    with opened(browser, file, width, 1100, dark) as seen:
        page = seen.page
        paper = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert (paper == "rgb(16, 22, 28)") == dark
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        found = Axe().run(page).response["violations"]
        assert [(one["id"], one["help"], [node["html"] for node in one["nodes"]][:3]) for one in found] == []
        page.click("#theme")
        assert (page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == paper) is False


def test_without_the_plotting_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "vl_convert", None)
    with pytest.raises(NotPossibleHere, match=r"\[page\]"):
        page_module.html_page({"one": profile(0)})
