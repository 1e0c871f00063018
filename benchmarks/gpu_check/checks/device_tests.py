"""Stage `tests`: what tests/gpu has, without the hours that compute-sanitizer takes (`make test-gpu` has it)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from benchmarks.gpu_check.figures import DeviceTest, TestFigures
from benchmarks.gpu_check.setting import ROOT, Setting

FOLDER = "tests/gpu"
TOO_SLOW = "test_gpu_sanitizer.py"
RESULTS = "gpu-results.md"  # what `make test-gpu` writes too


def run(setting: Setting, keep: Callable[[TestFigures], None]) -> None:
    """Run the tests by pytest, and keep each outcome as it comes."""
    os.chdir(ROOT)
    page = setting.folder.absolute() / RESULTS
    page.unlink(missing_ok=True)
    collector = Collector(keep)
    options = ["--ignore", f"{FOLDER}/{TOO_SLOW}", "--gpu-results", str(page), "-p", "no:cacheprovider", "-q"]
    pytest.main([FOLDER, *options], plugins=[collector])
    keep(TestFigures(tuple(collector.tests), noted(page.read_text(encoding="utf-8")) if page.exists() else ()))


@dataclass
class Collector:
    """A plugin of pytest that collects outcomes."""

    keep: Callable[[TestFigures], None]
    tests: list[DeviceTest] = field(default_factory=list)
    _started: float = 0.0

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._started = time.perf_counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the call's outcome, or that of a setup or teardown that did not pass."""
        if report.when != "call" and report.passed:
            return
        name = report.nodeid.removeprefix(f"{FOLDER}/")
        seconds = time.perf_counter() - self._started
        self.tests.append(DeviceTest(name, report.outcome, seconds, _reason(report)))
        self.keep(TestFigures(tuple(self.tests)))


def _reason(report: pytest.TestReport) -> str:
    if report.passed:
        return ""
    if isinstance(report.longrepr, tuple):  # a skip: file, line, reason
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash else report.longreprtext).splitlines()[0]


def noted(page: str) -> tuple[str, ...]:
    """Read the sentences that tests noted out of the page that tests/gpu/conftest.py writes."""
    lines = [line.removeprefix("- ") for line in page.splitlines() if line.startswith("- test_")]
    return tuple(line for line in lines if not line.startswith(("FAILED", "skipped")))
