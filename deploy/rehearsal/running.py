"""Run a rehearsal's steps, and say how far it is and what failed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from deploy.rehearsal.journey import Step

LAST_LINES = 30  # of a step that failed
STEP_SECONDS = 5400.0  # an emulator that hangs ends here


def run(steps: Sequence[Step], first: int, words: Callable[[str], list[str]], log: Path) -> bool:
    """Run steps until one fails; prints each with its time, and what the failed one said last.

    Args:
        steps: in order.
        first: the number of the step to begin with.
        words: turns a step's lines of sh into the command that runs them.
        log: a file to which all output is appended.

    Returns:
        whether all succeeded.
    """
    for number, step in enumerate(steps[first - 1 :], first):
        print(f"{number} of {len(steps)}, {step.name}", flush=True)
        began, start = time.perf_counter(), log.stat().st_size if log.exists() else 0
        with log.open("a", encoding="utf-8") as lines:
            lines.write(f"\n# {step.name}\n{step.command}\n")
            lines.flush()
            try:
                code = subprocess.run(
                    words(step.command), stdout=lines, stderr=lines, check=False, timeout=STEP_SECONDS
                ).returncode
            except subprocess.TimeoutExpired:
                lines.write(f"did not end in {STEP_SECONDS:.0f} s\n")
                code = -1
        if code:
            said = log.read_bytes()[start:].decode("utf-8", "replace").splitlines()
            print(f"Failed with {code} after {time.perf_counter() - began:.0f} s:\n{step.command}\n", file=sys.stderr)
            print("\n".join(said[-LAST_LINES:]), file=sys.stderr)
            return False
        say("done", began)
    return True


def say(what: str, began: float) -> None:
    """Print what was done in the time since `began`, of `time.perf_counter`."""
    print(f"    {what}: {time.perf_counter() - began:.0f} s", flush=True)
