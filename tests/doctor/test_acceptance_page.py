"""The page of an acceptance in headless Chromium, from a file with the network blocked; axe-core."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from echovlm_edge.runtime.doctor.acceptance.drawing.page import acceptance_page
from echovlm_edge.runtime.doctor.acceptance.limits import Limit, Limits, judge
from echovlm_edge.runtime.doctor.acceptance.schema import (
    VERSION,
    Acceptance,
    Check,
    Figure,
    Outcome,
    Sample,
    State,
    StepResult,
)
from echovlm_edge.runtime.profiling.drawing.rendering import plotting_library
from echovlm_edge.runtime.profiling.schema import BundleFacts
from tests.support.profiles import MACHINE

for module in ("playwright", "axe_playwright_python", "vl_convert"):
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed: the page was not opened", allow_module_level=True)

from axe_playwright_python.sync_playwright import Axe  # noqa: E402
from playwright.sync_api import Browser  # noqa: E402

from tests.support.browser import chromium, opened  # noqa: E402

SAMPLES = tuple(Sample(5.0 * n, 40 + n % 3, 50 + n, 2100.0 - n, 30 + n % 5, False) for n in range(1, 60))
STEPS = (
    StepResult("doctor", "the machine", State.PASSED, 0.2, "", Outcome((Check("<b>It fits.</b>", State.PASSED),))),
    StepResult("golden", "the bundle's golden tokens", State.SKIPPED, 0.1, "The bundle has no golden tokens."),
    StepResult(
        "load",
        "10 minutes of reports",
        State.PASSED,
        600.0,
        "",
        Outcome(
            (Check("Throttling", State.SKIPPED, "Nothing reports it."),),
            (Figure("load.tokens_per_second", 41.0), Figure("load.celsius_most", 109.0), Figure("load.reports", 12)),
            samples=SAMPLES,
        ),
    ),
)
LIMITS = Limits((), {"load.celsius_most": Limit(most=90), "load.tokens_per_second": Limit(least=20)})


def acceptance(steps: tuple[StepResult, ...], limits: Limits) -> Acceptance:
    judged, failures = judge(steps, limits)
    bundle = BundleFacts("a model", "0123456789abcdef", "cpu", "int4", 4096)
    common = ("2026-01-01T00:00:00+00:00", not failures, failures, "", False, MACHINE, bundle, steps, judged)
    return Acceptance("echovlm-acceptance", VERSION, *common)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of an acceptance with everything, which did not pass."""
    path = tmp_path_factory.mktemp("page") / "acceptance.html"
    path.write_text(acceptance_page(acceptance(STEPS, LIMITS), plotting_library("")), encoding="utf-8")
    return path


def test_it_begins_with_the_verdict_and_its_reasons(browser: Browser, file: Path) -> None:
    with opened(browser, file) as seen:
        page = seen.page
        assert page.locator("main > :first-child").inner_text() == "Not passed"
        assert page.locator("#about").inner_text() == f"{MACHINE.device or MACHINE.cpu}, 2026-01-01 00:00 UTC"
        assert page.locator("#summary").inner_text() == "2 of 3 steps passed, 0 failed, 1 skipped."
        assert page.locator("#failures").inner_text() == "load.celsius_most is 109, its limit is at most 90."
        skipped = page.locator("#left-out li").all_inner_texts()
        assert skipped == ["golden: The bundle has no golden tokens.", "load, Throttling: Nothing reports it."]
        figures = page.locator("#figures tbody tr").all_inner_texts()
        assert figures == [
            "load.tokens_per_second\t41\tat least 20\tpassed",
            "load.celsius_most\t109\tat most 90\tfailed",
            "load.reports\t12\tnone\tnot judged",
        ]
        assert page.locator("#checks tbody tr").first.inner_text() == "doctor\t<b>It fits.</b>\tpassed\t"
        for chart in ("tokens", "temperature", "power", "clock"):
            assert page.locator(f'[data-chart="{chart}"] svg path').count() >= 1, chart
        assert seen.messages == [] and seen.requests == []


def test_it_passed_and_what_is_unknown_is_not_drawn(browser: Browser, tmp_path: Path) -> None:
    load = replace(STEPS[2].outcome, samples=tuple(Sample(float(n), 4.0) for n in range(9)), figures=())
    steps = (STEPS[0], replace(STEPS[2], outcome=load))
    path = tmp_path / "passed.html"
    path.write_text(acceptance_page(acceptance(steps, Limits((), {})), plotting_library("")), encoding="utf-8")
    with opened(browser, path) as seen:
        assert seen.page.locator("#verdict").inner_text() == "Passed"
        seen.page.emulate_media(media="print")
        assert seen.page.eval_on_selector(".rows", "rows => getComputedStyle(rows).maxHeight") == "none", (
            "rows are cut off"
        )
        seen.page.emulate_media(media="screen")
        assert not seen.page.locator("#failures-section").is_visible()
        shown = [place.get_attribute("data-chart") for place in seen.page.locator("section:visible .chart").all()]
        assert shown == ["tokens"]
        assert seen.page.locator("#tiles .unknown").count() == 5


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_for_axe_and_nothing_sticks_out(browser: Browser, file: Path, width: int, dark: bool) -> None:
    with opened(browser, file, width, 1100, dark) as seen:
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
        found = Axe().run(seen.page).response["violations"]
        assert [(one["id"], one["help"], [node["html"] for node in one["nodes"]][:3]) for one in found] == []
