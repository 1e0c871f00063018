"""Try a grammar in a process of its own, which ends where it takes too long: llguidance bounds neither time nor memory of every form.

Whether several regular expressions have a text in common, as under a schema's allOf, can take hours and all memory. What a trial
takes does not depend on the vocabulary, so that it needs none.
"""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from typing import Any

SECONDS, BYTES = 0.5, 1 << 30  # of a processor, and of address space
PATIENCE = 60.0  # seconds on the clock, where other work has the processors
NICE = 10
TOO_COMPLEX = "it is too complex, so send a simpler one: fewer patterns that must hold together, and fewer repetitions"


def is_bounded(grammar: str, limits: dict[str, Any]) -> bool:
    """Return whether a grammar of llguidance compiles within a trial's limits; whether a text has it, is not said. Takes 0.1 s at least."""
    command = [sys.executable, "-P", "-m", __name__, repr(limits)]
    try:
        done = subprocess.run(
            command, input=grammar, text=True, timeout=PATIENCE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def main() -> int:
    """Compile the grammar at standard input, and compute its first mask; the process ends by a signal if that takes too long."""
    import ast
    import os

    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    os.nice(NICE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it would hold the client's words
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    limits = LLParserLimits(**ast.literal_eval(sys.argv[1]))
    matcher = LLMatcher(LLTokenizer("byte"), sys.stdin.read(), log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()
    return 0


if __name__ == "__main__":
    sys.exit(main())
