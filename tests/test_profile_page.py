"""The profile's page in headless Chromium, from a file with the network blocked: marks, search, comparison, themes, axe-core."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from echovlm_edge.runtime.errors import NotPossibleHere
from echovlm_edge.runtime.profiling import page as page_module
from echovlm_edge.runtime.profiling.page import html_page
from echovlm_edge.runtime.profiling.schema import RooflinePoint
from tests.profiles import profile, with_everything

for module in ("playwright", "axe_playwright_python", "vl_convert"):
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed: the page was not opened", allow_module_level=True)

from axe_playwright_python.sync_playwright import Axe  # noqa: E402
from playwright.sync_api import Browser  # noqa: E402

from tests.browser import chromium, opened  # noqa: E402

CHARTS = ("comparison", "waterfall", "stages", "roofline", "histogram", "tokens")
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of three runs; the last one's vision is slower."""
    runs = {}
    for seed, (label, factor) in enumerate((("main", 1.0), ("again", 1.0), ("<b>change</b>", 1.2))):
        told = with_everything(profile(seed, slower={"vision": factor}))
        points = tuple(RooflinePoint(name, 1e9, 3e10, 0.3) for name in ("vision", "prefill", "decode"))
        figures = type(told.workloads[0])(**{**vars(told.workloads[0]), "roofline": points})
        runs[label] = type(told)(**{**vars(told), "workloads": (figures,)})
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
        assert [row.split("\t")[0] for row in rows if row.endswith("slower")] == ["vision", "first token", "end to end"]
        page.select_option("#run", "again")
        page.wait_for_selector('body[data-drawn="again W1"]')
        assert not [row for row in page.locator("#compared tbody tr").all_inner_texts() if row.endswith("slower")]
        page.select_option("#run", "main")
        page.wait_for_selector('body[data-drawn="main W1"]')
        assert not page.locator("#comparison").is_visible()
        assert seen.messages == [] and seen.requests == []


def test_search(browser: Browser, file: Path) -> None:
    with opened(browser, file) as seen:
        page, table = seen.page, seen.page.locator("#operators tbody tr")
        assert table.count() == 16
        page.fill("#search", "prefill dualpath")
        assert table.count() == 4 and page.locator("#matches").inner_text() == "4 of 16 operators"
        assert all("DualPathMoE" in row and "prefill" in row for row in table.all_inner_texts())
        page.fill("#search", "nothing like it")
        assert table.count() == 0


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (820, False)])
def test_nothing_serious_for_axe_and_nothing_sticks_out(browser: Browser, file: Path, width: int, dark: bool) -> None:
    with opened(browser, file, width, 1100, dark) as seen:
        page = seen.page
        paper = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert (paper == "rgb(16, 22, 28)") == dark
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        found = Axe().run(page).response["violations"]
        assert [(one["id"], one["help"]) for one in found if one["impact"] in SERIOUS] == []
        page.click("#theme")
        assert (page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == paper) is False


def test_without_the_plotting_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "vl_convert", None)
    with pytest.raises(NotPossibleHere, match=r"echovlm-edge\[page\]"):
        page_module.html_page({"one": profile(0)})
