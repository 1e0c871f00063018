"""The journal of device tests: lines that pytest's plugin writes (`pytest_journal`) and the step `device-tests` reads.

A line of JSON each: `{"collected": [name]}`, `{"begun": name}`, and `{"ended": name, "state", "seconds", "reason", "found"}`, where
`found` has what the test recorded (`record_property`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

JOURNAL = "ECHOVLM_PYTEST_JOURNAL"  # the variable that names the plugin's file


@dataclass(frozen=True)
class Seen:
    """What a journal says.

    Attributes:
        collected: all tests in their order; None where collection did not end.
        ended: the line of each that ended; of two, the one that failed.
        running: the test that began last and did not end.
    """

    collected: list[str] | None
    ended: dict[str, dict[str, Any]]
    running: str | None

    @classmethod
    def of(cls, journal: Path) -> Seen:
        """Read a journal; a line that a killed process left half written says nothing."""
        collected, ended, running = None, dict[str, dict[str, Any]](), None
        for line in _lines(journal):
            collected = line.get("collected") if collected is None else collected
            running = line.get("begun", running)
            if name := line.get("ended"):
                running = None
                if name not in ended or ended[name]["state"] != "failed":
                    ended[name] = line
        return cls(collected, ended, running)

    @property
    def not_run(self) -> list[str]:
        """The collected tests that have no result."""
        return [name for name in self.collected or () if name not in self.ended]


def ended_line(name: str, state: str, seconds: float, reason: str, found: dict[str, Any]) -> dict[str, Any]:
    """Make the journal's line of a test that has ended."""
    return {"ended": name, "state": state, "seconds": seconds, "reason": reason, "found": found}


def append_line(journal: Path, line: dict[str, Any]) -> None:
    """Add a line, after the end of one that is half written; what is no text of Unicode is replaced."""
    whole = not journal.exists() or journal.read_bytes()[-1:] in (b"", b"\n")
    with journal.open("ab") as file:
        text = json.dumps(line, ensure_ascii=False, allow_nan=False)
        file.write((b"" if whole else b"\n") + text.encode("utf-8", "replace") + b"\n")


def _lines(journal: Path) -> list[dict[str, Any]]:
    found = []
    for text in journal.read_bytes().split(b"\n") if journal.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            found.append(line)
    return found
