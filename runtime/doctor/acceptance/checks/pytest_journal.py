"""A plugin of pytest that writes down each test as it begins and ends, so that a crash is known to be of the test that ran.

The lines are those of `device_journal`. Tests that the journal has already are left out. A module is skipped where a
package of others that it imports is missing; a missing module of this package is a failure.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from echovlm_edge.runtime.doctor.acceptance.checks.device_journal import JOURNAL, Seen, append_line, ended_line

LONGEST_REASON = 300
MISSING_MODULE = re.compile(r"ModuleNotFoundError: No module named '[^']+'")
MISSING_OWN = re.compile(r"No module named 'echovlm_edge[.']")


class PytestJournal:
    """Writes the journal of one run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._process = os.getpid()
        self._collected: list[str] = []
        self._states: dict[str, dict[str, Any]] = {}

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """A test is known, before anything could leave it out."""
        self._collected.append(item.nodeid)

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out what an earlier process has run."""
        self._write({"collected": self._collected})
        done = Seen.of(self._path).ended
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
        items[:] = [item for item in items if item.nodeid not in done]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A module was imported, or not."""
        if report.outcome != "passed":
            reason = _reason(report)
            missing = report.skipped or MISSING_MODULE.match(reason)
            state = "skipped" if missing and not MISSING_OWN.search(reason) else "failed"
            self._write(ended_line(report.nodeid, state, 0.0, reason, {}))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins."""
        self._states[nodeid] = ended_line(nodeid, "passed", 0.0, "", {})
        self._write({"begun": nodeid})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test's set-up, call or tear-down has ended."""
        self._end_fork()
        state = self._states[report.nodeid]
        state["seconds"] += report.duration
        if report.outcome != "passed" and state["state"] != "failed":
            state["reason"] = _reason(report)
            state["state"] = "failed" if MISSING_OWN.search(state["reason"]) else report.outcome
        if report.when == "teardown":
            state["found"] = _found(report.user_properties)
            self._write(state)

    def _write(self, line: dict[str, Any]) -> None:
        self._end_fork()
        append_line(self._path, line)

    def _end_fork(self) -> None:
        """End a process that a test forked and that returned from the test: the others are not its to run."""
        if os.getpid() != self._process:
            os._exit(0)


def pytest_configure(config: pytest.Config) -> None:
    """Begin the journal."""
    config.pluginmanager.register(PytestJournal(Path(os.environ[JOURNAL])), "echovlm-journal")


def _found(recorded: Iterable[tuple[str, object]]) -> dict[str, float | str]:
    """Return the texts and numbers that a test recorded; what JSON has no number for is a text."""
    found: dict[str, float | str] = {}
    for name, value in recorded:
        if isinstance(value, int | float):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            found[name] = number if math.isfinite(number) else f"{name}: {number}"
        elif isinstance(value, str):
            found[name] = value
    return found


def _reason(report: pytest.CollectReport | pytest.TestReport) -> str:
    """Return what a failure or a skip says, on one line."""
    said = report.longrepr
    if isinstance(said, tuple):
        text = said[2].removeprefix("Skipped: ")
    else:
        crash = getattr(said, "reprcrash", None)
        lines = [line for line in (crash.message if crash else str(said)).splitlines() if line.strip()]
        text = lines[0] if crash and lines else lines[-1] if lines else ""
    return text.removeprefix("E   ").strip()[:LONGEST_REASON]
