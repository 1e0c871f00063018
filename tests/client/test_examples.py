"""The programs in examples/python, run as a reader would run them, against a real server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from echovlm_edge.runtime.contracts.errors import Busy, UserError
from echovlm_edge.runtime.contracts.request import (
    Event,
    Finished,
    FinishReason,
    GenerationRequest,
    TextDelta,
)
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions
from tests.support.decoding_engine import DecodingEngine
from tests.support.dicom_files import png

EXAMPLES = Path(__file__).parents[2] / "examples" / "python"
TEXT = "Findings: A nodule. Impression: Benign."


class Reporting(DecodingEngine):
    """Writes a report of two sections, after as many refusals as it is told."""

    refusals: list[UserError]

    def generate(self, request: GenerationRequest, stopped: Callable[[], bool]) -> Iterator[Event]:
        if self.refusals:
            raise self.refusals.pop()
        for _ in super().generate(request, stopped):
            yield TextDelta(TEXT)
            yield Finished(TEXT, (1,), FinishReason.STOP, 1, 0, {}, None)


@pytest.fixture
def engine() -> Reporting:
    engine = Reporting()
    engine.refusals = []
    return engine


@pytest.fixture
def address(engine: Reporting) -> Iterator[str]:
    server = ReportServer(engine, ServerOptions("127.0.0.1:0", grace_seconds=0.1))
    yield server.address
    server.stop()


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png(64, 64))
    return sorted(tmp_path.iterdir())


def run(name: str, *words: object, typed: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLES / name, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, input=typed)


def test_report(address: str, files: list[Path], engine: Reporting) -> None:
    engine.refusals = [Busy("Full.", 0.01)]
    done = run("report.py", address, *files)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "Findings: A nodule.\nImpression: Benign.\n" in done.stdout and "request" in done.stdout


def test_report_says_what_is_wrong(address: str, files: list[Path]) -> None:
    files[1].write_bytes(b"text")
    assert run("report.py", address, *files).stderr.startswith("One of the files is at fault: b.png ")
    assert run("report.py", "127.0.0.1:9", *files).stderr.startswith("No connection: No server listens at")


def test_study(address: str, files: list[Path]) -> None:
    done = run("study.py", address, *files)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(TEXT) and done.stdout.endswith(f"{TEXT}\n")
    assert "image 1: " in done.stderr and "image 2: " in done.stderr


def test_conversation(address: str, files: list[Path], engine: Reporting) -> None:
    done = run("conversation.py", address, *files, typed="A cyst.\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(TEXT) == 3
    last = engine.requests[-1]
    assert [turn.reply for turn in last.turns] == ["A cyst.", TEXT, ""] and last.prompt == "And in this image?"


def test_async_reports(address: str, files: list[Path]) -> None:
    files[1].write_bytes(b"text")
    done = run("async_reports.py", address, *files)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert f"{files[0]}: Benign." in done.stdout and f"{files[1]}: b.png is of no known kind" in done.stdout


def test_in_process(golden_bundle: Path, files: list[Path]) -> None:
    done = run("in_process.py", golden_bundle, files[0])
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\nA draft, not reviewed by a clinician.\n")


def test_each_is_short() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert len(lengths) == 5 and max(lengths.values()) <= 30, lengths
