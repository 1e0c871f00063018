"""End `echovlm-profile`: its exit codes, and the sentences that go with them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

HOLDS, BROKEN, CANNOT_TELL = 0, 1, 3  # 2 is a user's error: see `runtime.contracts.command`


def ended(broken: Sequence[str], unknown: Sequence[str] = ()) -> int:
    """Print a sentence for each regression or broken bound, then for each undecided one; returns the exit code."""
    for sentence in (*broken, *unknown):
        print(sentence, file=sys.stderr)
    if broken:
        return BROKEN
    return CANNOT_TELL if unknown else HOLDS
