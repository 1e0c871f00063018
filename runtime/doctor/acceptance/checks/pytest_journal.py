"""A plugin of pytest that writes down each test as it begins and ends, so that a crash is known to be of the test that ran.

A line of JSON each: `{"collected": [name]}`, `{"begun": name}`, and `{"ended": name, "state", "seconds", "reason", "found"}`, where
`found` has what the test recorded (`record_property`). Tests that the journal has already are left out. A module was
skipped where a package that it imports is missing.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from echovlm_edge.runtime.doctor.acceptance.checks.device_tests import JOURNAL, ended_line

LONGEST_REASON = 300


class PytestJournal:
    """Writes the journal of one run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._states: dict[str, dict[str, Any]] = {}

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out what an earlier process has run."""
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else ()
        done = {json.loads(line).get("begun") for line in lines}
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
        items[:] = [item for item in items if item.nodeid not in done]

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """All tests are known."""
        self._write({"collected": [item.nodeid for item in session.items]})

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A module was imported, or not."""
        if report.outcome != "passed":
            reason = _reason(report)
            missing = report.skipped or "ModuleNotFoundError" in reason
            self._write(ended_line(report.nodeid, "skipped" if missing else "failed", 0.0, reason, {}))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins."""
        self._states[nodeid] = ended_line(nodeid, "passed", 0.0, "", {})
        self._write({"begun": nodeid})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test's set-up, call or tear-down has ended."""
        state = self._states[report.nodeid]
        state["seconds"] += report.duration
        if report.outcome != "passed" and state["state"] != "failed":
            state["state"], state["reason"] = report.outcome, _reason(report)
        if report.when == "teardown":
            state["found"] = {
                name: value for name, value in report.user_properties if isinstance(value, int | float | str)
            }
            self._write(state)

    def _write(self, line: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    """Begin the journal."""
    config.pluginmanager.register(PytestJournal(Path(os.environ[JOURNAL])), "echovlm-journal")


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
