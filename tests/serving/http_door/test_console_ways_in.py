"""The console as people reach it and bring files: over TLS with a certificate that nobody knows, and by dragging files into it."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from echovlm_edge.runtime.serving.access.clients import ClientsFile
from echovlm_edge.runtime.serving.access.tls import TlsFiles
from echovlm_edge.runtime.serving.transport.server import ReportServer
from tests.support.authority import Authority
from tests.support.clients_file import clients_file
from tests.support.dicom_files import png
from tests.support.http_door import OPTIONS, http_server
from tests.support.telling_engine import TellingEngine

if find_spec("playwright") is None:
    pytest.skip("playwright is not installed: the page was not opened", allow_module_level=True)

from playwright.sync_api import Browser, Page, expect

from tests.support.browser import chromium, visited


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png(80, 60))
    return [tmp_path / "a.png", tmp_path / "b.png"]


def drag(page: Page, files: list[Path], target: str, kinds: tuple[str, ...]) -> None:
    """Drag files as a person does, by the browser's own input: from its file manager over the middle of an element."""
    box = page.locator(target).bounding_box()
    assert box
    data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
    session = page.context.new_cdp_session(page)
    for kind in kinds:
        place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        session.send("Input.dispatchDragEvent", {"type": kind, "data": data, **place})
    session.detach()


DROPPED = "dragEnter", "dragOver", "drop"


def test_files_are_dragged_in(browser: Browser, files: list[Path]) -> None:
    with http_server(TellingEngine("A cyst.")) as (server, _), visited(browser, server.http_address) as seen:
        page = seen.page
        page.locator("body[data-ready]").wait_for()
        pane = page.locator(".pictures")
        drag(page, files[:1], "#drop", DROPPED[:2])
        expect(pane).to_have_class(re.compile(r"\bover\b"))
        drag(page, files[:1], "header", ("dragOver",))  # on to another part of the page
        expect(pane).to_have_class(re.compile(r"^pictures\s*$"))
        assert page.locator("#drop").is_visible()
        drag(page, files[:1], "#drop", DROPPED)
        expect(page.locator("#strip img")).to_have_count(1)
        expect(pane).to_have_class(re.compile(r"^pictures\s*$"))
        drag(page, files[1:], "#options", DROPPED)  # beside the pane: the page stays, and has one more
        expect(page.locator("#strip img")).to_have_count(2)
        assert page.locator("#file-list li span").all_inner_texts() == ["a.png", "b.png"]
        page.locator("#write").click()
        expect(page.locator("#text p")).to_have_text("A cyst.")
        assert page.url == f"http://{server.http_address}/" and seen.messages == [] and seen.requests == []


def test_it_works_over_tls(browser: Browser, files: list[Path], tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path).issue("server", "127.0.0.1")
    access = ClientsFile(clients_file(tmp_path, {"desk": {"token": "secret"}}))
    options = replace(OPTIONS, tls=TlsFiles(certificate, key))
    server = ReportServer(TellingEngine("A cyst."), options, access=access)
    try:
        with visited(browser, server.http_address, tls=True) as seen:
            page = seen.page
            page.fill("#token", "secret")
            page.keyboard.press("Enter")
            page.locator("body[data-ready]").wait_for()
            assert page.evaluate("isSecureContext")
            page.set_input_files("#files", files)
            expect(page.locator("#strip img")).to_have_count(2)
            page.locator("#write").click()
            expect(page.locator("#text p")).to_have_text("A cyst.")
            page.locator("#tab-service").click()
            expect(page.locator("#panel-service .slots i")).to_have_count(2)
            assert seen.messages == [] and seen.requests == []
        assert ssl.get_server_certificate(tuple(server.http_address.rsplit(":", 1))).startswith("-----BEGIN")  # type: ignore[arg-type]
    finally:
        server.stop()
