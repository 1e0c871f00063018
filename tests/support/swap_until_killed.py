"""Change a folder of bundles until this process is killed, over and over; run as a program, with the folder and two bundles.

Each line that is read from stdin is a delay in milliseconds: a child changes the folder for so long, and is killed with SIGKILL. The
answer is a line: `whole`, or what is wrong with the folder then.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from itertools import cycle
from pathlib import Path

from echovlm_edge.runtime.bundle.installed import install, roll_back
from echovlm_edge.runtime.bundle.manifest import CURRENT, Bundle


def swap(folder: Path, bundles: list[Path]) -> None:
    """Install one, the other, go back: without an end."""
    for step, bundle in enumerate(cycle(bundles)):
        install(bundle, folder)
        if step % 3 == 2:
            roll_back(folder)


def look(folder: Path, ids: set[str]) -> str:
    """Return what is wrong with the folder, or `whole`."""
    current = Bundle(folder, verify=True)
    if current.manifest.bundle_id not in ids:
        return f"{current.path} is neither"
    return "whole" if (folder / CURRENT).is_symlink() else "current is no link"


def main(folder: Path, bundles: list[Path]) -> None:
    """Kill as often as stdin asks for it."""
    ids = {Bundle(bundle).manifest.bundle_id for bundle in bundles}
    install(bundles[0], folder)
    for line in sys.stdin:
        if not (child := os.fork()):
            swap(folder, bundles)
        time.sleep(float(line) / 1000)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        told = look(folder, ids) if os.WIFSIGNALED(status) else "the child ended by itself"
        install(bundles[0], folder)  # whatever was left half done does not hinder the next one
        print(told, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
