"""`import echovlm_edge`: what a program imports, that it is light, and that old names still lead somewhere."""

from __future__ import annotations

import doctest
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import echovlm_edge
from echovlm_edge.runtime.contracts.request import Event, Finished, FinishReason, GenerationRequest
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions
from tests.support.decoding_engine import DecodingEngine
from tests.support.dicom_files import png


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_every_name_is_there_and_is_listed() -> None:
    for name in echovlm_edge.__all__:
        assert getattr(echovlm_edge, name) is not None
    assert dir(echovlm_edge) == sorted(echovlm_edge.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'ReportCleint'"):
        _ = echovlm_edge.ReportCleint  # type: ignore[attr-defined]


def test_the_package_alone_imports_nothing_heavy() -> None:
    heavy = ("numpy", "grpc", "onnxruntime", "torch", "pydicom", "PIL")
    done = run(f"import sys, echovlm_edge; print([name for name in {heavy!r} if name in sys.modules])")
    assert done.stdout == "[]\n", done.stderr


def test_the_client_imports_neither_the_engine_nor_what_decodes() -> None:
    blocked = ("onnxruntime", "torch", "PIL", "tokenizers", "pydantic", "jinja2", "pydicom", "rich")
    done = run(
        f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n"
        "from echovlm_edge import AsyncReportClient, Report, ReportClient, ServerBusy\n"
        "print('echovlm_edge.runtime.engine.report_engine' in sys.modules)"
    )
    assert done.stdout == "False\n", done.stderr


def test_a_missing_extra_is_one_sentence() -> None:
    done = run("import sys; sys.modules['torch'] = None\nfrom echovlm_edge import build")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: build needs torch, which is not installed: ") and "export" in last, done.stderr


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("client.ReportClient", "client.wire.connection.Connection"),
        ("client.ReportRequest", "client.wire.requests.ReportRequest"),
        ("client.Credentials", "client.wire.credentials.Credentials"),
        ("client.Retries", "client.wire.attempts.Retries"),
        ("client.read_image", "contracts.image_path.read_image"),
        ("engine.ReportEngine", "engine.report_engine.ReportEngine"),
    ],
)
def test_an_old_name_works_and_says_where_it_is_now(old: str, new: str) -> None:
    (room, name), (module, _, now) = old.split("."), new.rpartition(".")
    done = run(
        f"from echovlm_edge.runtime.{room} import {name}\n"
        f"from echovlm_edge.runtime.{module} import {now}\n"
        f"print({name} is {now})"
    )
    assert done.stdout == "True\n", done.stderr
    warned = run(f"import warnings; warnings.simplefilter('error')\nfrom echovlm_edge.runtime.{room} import {name}")
    assert (
        "DeprecationWarning" in warned.stderr and f".{name} goes with version 0.3: use echovlm_edge." in warned.stderr
    )


class Reporting(DecodingEngine):
    """Writes a report of two sections."""

    def generate(self, request: GenerationRequest, stopped: Callable[[], bool]) -> Iterator[Event]:
        yield Finished("Findings: A nodule. Impression: Benign.", (1,), FinishReason.STOP, 1, 0, {}, None)


def test_the_packages_examples_are_true(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(png(64, 64))
    server = ReportServer(Reporting(), ServerOptions("127.0.0.1:0", grace_seconds=0.1))
    try:
        known = {"address": server.address, "picture": picture}
        (test,) = doctest.DocTestFinder(recurse=False).find(echovlm_edge, extraglobs=known, globs={})
        assert len(test.examples) > 5 and doctest.DocTestRunner().run(test).failed == 0
    finally:
        server.stop()
