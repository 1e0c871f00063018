"""Open a page in headless Chromium, from a file or from a server on loopback, with the network blocked, and record its log."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, sync_playwright

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Opened:
    page: Page
    messages: list[str] = field(default_factory=list)  # errors and warnings of the console
    requests: list[str] = field(default_factory=list)  # of anything but the file or the server


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a browser; skips the test if there is none."""
    program = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium): the page was not opened")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser, file: Path, width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[Opened]:
    """Open the file in a new window whose network is blocked."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", offline=True
    )
    try:
        seen = Opened(context.new_page())

        def block(route: Route) -> None:
            if route.request.url == file.as_uri():
                route.continue_()
            else:
                seen.requests.append(route.request.url)
                route.abort()

        context.route("**/*", block)
        seen.page.on("console", lambda message: _log(seen, message.type, message.text))
        seen.page.on("pageerror", lambda error: seen.messages.append(str(error)))
        seen.page.goto(file.as_uri())
        seen.page.wait_for_selector("body[data-drawn]", timeout=60_000)
        yield seen
    finally:
        context.close()


@contextmanager
def visited(
    browser: Browser,
    address: str,
    width: int = 1360,
    height: int = 900,
    dark: bool = False,
    locale: str = "en-US",
    tls: bool = False,
) -> Iterator[Opened]:
    """Open a server's start page in a new window that reaches that server alone; with `tls` whoever signed its certificate."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        locale=locale,
        ignore_https_errors=tls,
    )
    own = f"{'https' if tls else 'http'}://{address}/"
    try:
        seen = Opened(context.new_page())

        def block(route: Route) -> None:
            if route.request.url.startswith((own, "data:", "blob:")):
                route.continue_()
            else:
                seen.requests.append(route.request.url)
                route.abort()

        context.route("**/*", block)
        seen.page.on("console", lambda message: _log(seen, message.type, message.text))
        seen.page.on("pageerror", lambda error: seen.messages.append(str(error)))
        seen.page.goto(own)
        yield seen
    finally:
        context.close()


def _log(seen: Opened, kind: str, text: str) -> None:
    if kind in ("error", "warning"):
        seen.messages.append(text)
