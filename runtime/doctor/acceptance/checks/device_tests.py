"""Step `device-tests`: the tests of a folder, such as the project's own of a GPU, by pytest; each passes, fails or is skipped by itself."""

from __future__ import annotations

import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from echovlm_edge.runtime.backends.opening import plugin_for
from echovlm_edge.runtime.contracts.extras import install_hint
from echovlm_edge.runtime.doctor.acceptance.checks.device_journal import JOURNAL, Seen, append_line, ended_line
from echovlm_edge.runtime.doctor.acceptance.schema import Check, Figure, Outcome, State
from echovlm_edge.runtime.doctor.acceptance.setting import Setting, Skipped
from echovlm_edge.runtime.resources.nvml import nvidia_gpus

STEP = "device-tests"
OUTPUT = "device-tests.txt"  # what pytest writes, next to the archive: it may quote anything, and is not sent
PLUGIN = "echovlm_edge.runtime.doctor.acceptance.checks.pytest_journal"
TESTED_PLUGIN = "ECHOVLM_TESTED_PLUGIN"  # the variable that names the plugin library to test, where the bundle has one
TEST_SECONDS = 600.0  # that one test, or the collection of all, may take
POLL_SECONDS = 0.2
ENDED, NO_TESTS = (0, 1), 5  # pytest's exit codes: all were run, and passed or not; it collected none


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
    for before in (journal, setting.folder / OUTPUT):
        before.unlink(missing_ok=True)
    setting.logs.mkdir(parents=True, exist_ok=True)
    left = None
    while True:
        code = _run(setting, setting.checks, journal)
        seen = Seen.of(journal)
        if seen.running is None:
            return _outcome(seen, code, setting.checks)
        append_line(journal, ended_line(seen.running, "failed", 0.0, _how(code), {}))
        seen, before_it = Seen.of(journal), left
        left = len(seen.not_run)
        if left == 0 or left == before_it:
            return Outcome(_checks(seen), _figures(seen))


def _outcome(seen: Seen, code: int | None, folder: Path) -> Outcome:
    """Judge a run of which no test was left running by pytest's exit code; None: it took too long."""
    checks = _checks(seen)
    if code == NO_TESTS and not checks:
        checks = (Check("pytest", State.FAILED, f"{folder} holds no tests: see {OUTPUT} in the output folder."),)
    elif seen.collected is None or code not in (*ENDED, *(() if seen.collected else (NO_TESTS,))):
        reason = f"{_how(code)} before a test began, or after the last one: see {OUTPUT} in the output folder."
        checks = (*checks, Check("pytest", State.FAILED, reason))
    return Outcome(checks, _figures(seen))


def _how(code: int | None) -> str:
    if code is None:
        return f"It took longer than {TEST_SECONDS:.0f} s, and was ended"
    if code < 0:
        return f"It ended the process by {signal.Signals(-code).name}"
    return f"It ended the process with exit code {code}"


def _run(setting: Setting, folder: Path, journal: Path) -> int | None:
    """Run the tests that the journal does not have, and end their children; returns pytest's exit code, None if it took too long."""
    # The installed package is imported before the folder's own copy of its sources could be; a conftest above the folder is not needed.
    # No file or variable of pytest's options is read, which could leave tests out; modules are found from the project's root.
    project = next((above for above in (folder, *folder.parents) if (above / "pyproject.toml").exists()), None)
    command = [sys.executable, "-P", "-m", "pytest", str(folder), f"--confcutdir={folder}", "-p", PLUGIN]
    command += ["-c", os.devnull, f"--rootdir={project or folder}", "-o", "addopts="]
    command += ["-o", f"pythonpath={shlex.quote(str(project))}"] if project else []
    command += ["-p", "no:cacheprovider", "--continue-on-collection-errors"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {JOURNAL: str(journal), "PYTHONDONTWRITEBYTECODE": "1"}
    if plugin := plugin_for(setting.bundle):
        environment[TESTED_PLUGIN] = str(plugin)
    with (setting.folder / OUTPUT).open("a", encoding="utf-8") as output:
        process = subprocess.Popen(
            command,
            cwd=setting.folder,
            env=environment,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            in_time = _waited(process, journal, setting)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode if in_time else None


def _waited(process: subprocess.Popen[bytes], journal: Path, setting: Setting) -> bool:
    """Wait for the process to end, but keep its number; returns False where the journal has not grown for too long."""
    size, since = -1, time.monotonic()
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        now = journal.stat().st_size if journal.exists() else 0
        if now != size:
            size, since = now, time.monotonic()
            setting.say(f"{len(Seen.of(journal).ended)} tests done")
        elif time.monotonic() - since > TEST_SECONDS:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _checks(seen: Seen) -> tuple[Check, ...]:
    """List the tests in their order: why each failed, was skipped or was not run, else its seconds and what it says it found."""
    order = {name: place for place, name in enumerate(seen.collected or ())}
    checks = []
    for name in sorted(seen.ended, key=lambda name: order.get(name, -1)):
        line = seen.ended[name]
        notes = [f"{line['seconds']:.1f} s", *(value for value in line["found"].values() if isinstance(value, str))]
        checks.append(Check(name, State(line["state"]), line["reason"] or "; ".join(notes)))
    why = f"It was not run, although it was collected: see {OUTPUT} in the output folder."
    return (*checks, *(Check(name, State.FAILED, why) for name in seen.not_run))


def _figures(seen: Seen) -> tuple[Figure, ...]:
    return tuple(
        Figure(f"{STEP}.{name.rpartition('/')[2]}.{found}", float(value))
        for name, line in seen.ended.items()
        for found, value in line["found"].items()
        if not isinstance(value, str)
    )
