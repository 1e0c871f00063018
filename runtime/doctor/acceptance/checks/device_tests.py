"""Step `device-tests`: the tests of a folder, such as the project's own of a GPU, by pytest; each passes, fails or is skipped by itself."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echovlm_edge.runtime.backends.opening import plugin_for
from echovlm_edge.runtime.contracts.extras import install_hint
from echovlm_edge.runtime.doctor.acceptance.schema import Check, Figure, Outcome, State
from echovlm_edge.runtime.doctor.acceptance.setting import Setting, Skipped
from echovlm_edge.runtime.resources.nvml import nvidia_gpus

STEP = "device-tests"
PLUGIN = "echovlm_edge.runtime.doctor.acceptance.checks.pytest_journal"
JOURNAL = "ECHOVLM_PYTEST_JOURNAL"  # the variable that names the plugin's file
TESTED_PLUGIN = "ECHOVLM_TESTED_PLUGIN"  # the variable that names the plugin library to test, where the bundle has one
TEST_SECONDS = 600.0  # that one test, or the collection of all, may take
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class _Seen:
    """What a journal says: all tests in their order, the line of each that ended, and the one that had not."""

    collected: list[str]
    ended: dict[str, dict[str, Any]]
    running: str | None

    @classmethod
    def of(cls, journal: Path) -> _Seen:
        collected, ended, running = list[str](), dict[str, dict[str, Any]](), None
        for text in journal.read_text(encoding="utf-8").splitlines() if journal.exists() else ():
            line = json.loads(text)
            collected, running = collected or line.get("collected", []), line.get("begun", running)
            if name := line.get("ended"):
                ended[name], running = line, None
        return cls(collected, ended, running)


def device_tests(setting: Setting) -> Outcome:
    """Run the tests of `setting.checks`; one that ends the process or hangs fails, and the others run in another process."""
    if setting.checks is None:
        gpu = bool(nvidia_gpus())
        raise Skipped(
            "No tests were given: --checks, with the folder tests/gpu of the source archive."
            if gpu
            else "NVML finds no NVIDIA GPU to test."
        )
    if importlib.util.find_spec("pytest") is None:
        raise Skipped(f"pytest is not installed: {install_hint('checks')}.")
    journal = setting.logs / f"{STEP}.jsonl"
    journal.unlink(missing_ok=True)
    while (ended := _run(setting, setting.checks, journal)) is not None:
        seen = _Seen.of(journal)
        if seen.running is None:
            reason = f"{ended} before a test began, or after the last one: see logs/{STEP}.log."
            return Outcome((*_checks(seen), Check("pytest", State.FAILED, reason)), _figures(seen))
        with journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(ended_line(seen.running, "failed", 0.0, ended, {})) + "\n")
    seen = _Seen.of(journal)
    if not seen.ended:
        return Outcome((Check("pytest", State.FAILED, f"{setting.checks} holds no tests: see logs/{STEP}.log."),))
    return Outcome(_checks(seen), _figures(seen))


def ended_line(name: str, state: str, seconds: float, reason: str, found: dict[str, Any]) -> dict[str, Any]:
    """Make the journal's line of a test that has ended."""
    return {"ended": name, "state": state, "seconds": seconds, "reason": reason, "found": found}


def _run(setting: Setting, folder: Path, journal: Path) -> str | None:
    """Run the tests that the journal does not have; returns how the process ended before its time, or None."""
    setting.logs.mkdir(parents=True, exist_ok=True)
    # The installed package is imported before the folder's own copy of its sources could be; a conftest above the folder is not needed.
    command = [sys.executable, "-P", "-m", "pytest", str(folder), f"--confcutdir={folder}", "-p", PLUGIN]
    command += ["-p", "no:cacheprovider", "--continue-on-collection-errors"]
    environment = {**os.environ, JOURNAL: str(journal), "PYTHONDONTWRITEBYTECODE": "1"}
    if plugin := plugin_for(setting.bundle):
        environment[TESTED_PLUGIN] = str(plugin)
    with (setting.logs / f"{STEP}.log").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, cwd=setting.folder, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        try:
            in_time = _waited(process, journal, setting)
        finally:
            process.kill()
            process.wait()
    if not in_time:
        return f"It took longer than {TEST_SECONDS:.0f} s, and was ended"
    if process.returncode < 0:
        return f"It ended the process by {signal.Signals(-process.returncode).name}"
    return None


def _waited(process: subprocess.Popen[bytes], journal: Path, setting: Setting) -> bool:
    """Wait for the process to end; returns False where the journal has not grown for too long."""
    size, since = -1, time.monotonic()
    while process.poll() is None:
        now = journal.stat().st_size if journal.exists() else 0
        if now != size:
            size, since = now, time.monotonic()
            setting.say(f"{journal.read_text(encoding='utf-8').count(chr(10)) // 2 if now else 0} tests done")
        elif time.monotonic() - since > TEST_SECONDS:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _checks(seen: _Seen) -> tuple[Check, ...]:
    """List the tests in their order: why each failed or was skipped, else its seconds and what it says it found."""
    order = {name: place for place, name in enumerate(seen.collected)}
    checks = []
    for name in sorted(seen.ended, key=lambda name: order.get(name, -1)):
        line = seen.ended[name]
        notes = [f"{line['seconds']:.1f} s", *(value for value in line["found"].values() if isinstance(value, str))]
        checks.append(Check(name, State(line["state"]), line["reason"] or "; ".join(notes)))
    return tuple(checks)


def _figures(seen: _Seen) -> tuple[Figure, ...]:
    return tuple(
        Figure(f"{STEP}.{name.rpartition('/')[2]}.{found}", float(value))
        for name, line in seen.ended.items()
        for found, value in line["found"].items()
        if not isinstance(value, str)
    )
