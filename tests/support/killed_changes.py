"""Kill a change of a folder of bundles at every moment; run as a program: FOLDER OTHERS SEED and three BUNDLEs.

A moment is before something that Python does to the file system, as its audit events say. For each, a process of its own begins to
install the third bundle while the second is current and the first previous, or to roll back, and gets SIGKILL at that moment: all
moments at links and renames, and OTHERS drawn from the rest (0: all). Both also after a server refused the second bundle; then the
first must stay the previous one while the third is installed. A server that records its refusal is killed likewise. Prints a line for
each: the change, the moment, and `whole` or what is wrong with the folder then.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from echovlm_edge.runtime.bundle.installed import PREVIOUS, install, roll_back
from echovlm_edge.runtime.bundle.loads import Loads
from echovlm_edge.runtime.bundle.manifest import CURRENT, Bundle, bundle_at

AT_LINKS = ("os.rename", "os.symlink")
WATCHED = ("open", "os.", "shutil.", "ctypes.")


def run_until(change: Callable[[], object], moment: int, seen: int) -> bool:
    """Change in a process that is killed before its `moment`th event, and writes their names to `seen`; returns whether it was killed."""
    if not (child := os.fork()):
        count = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            if not event.startswith(WATCHED) or event == "os.kill":
                return
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            os.write(seen, f"{event}\n".encode())

        sys.addaudithook(hook)
        change()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def wrong_with(folder: Path, ids: list[str], kept: str | None) -> str:
    """Return what is wrong with a folder in which a change was killed; `whole` if nothing is and `kept` is the previous bundle."""
    current = Bundle(folder, verify=True).manifest.bundle_id
    previous = Bundle(folder / PREVIOUS, verify=True).manifest.bundle_id
    if not {current, previous} <= set(ids) or kept not in (None, previous) or not (folder / CURRENT).is_symlink():
        return f"current is {current}, previous {previous}"
    return "whole"


def main(folder: Path, others: int, seed: int, bundles: list[Path]) -> None:
    """Kill each change at its moments."""
    ids = [Bundle(bundle).manifest.bundle_id for bundle in bundles]
    changes: dict[str, Callable[[], object]] = {
        "install": lambda: install(bundles[2], folder),
        "rollback": lambda: roll_back(folder),
        "refusal": lambda: refuse(folder, bundles),
    }
    for name, change, refused in (
        *((name, change, False) for name, change in changes.items()),
        ("install-after-refusal", changes["install"], True),
        ("rollback-after-refusal", changes["rollback"], True),
    ):
        kept = ids[0] if name in ("refusal", "install-after-refusal") else None
        begin(folder, bundles, refused)
        reading, writing = os.pipe()
        assert not run_until(change, -1, writing), "a change that nobody kills ends"
        os.close(writing)
        events = os.fdopen(reading).read().split()
        rest = [place for place, event in enumerate(events) if event not in AT_LINKS]
        drawn = random.Random(seed).sample(rest, others) if others else rest
        for place, event in enumerate(events):
            if place not in drawn and event not in AT_LINKS:
                continue
            begin(folder, bundles, refused)
            assert run_until(change, place, os.open(os.devnull, os.O_WRONLY)), "it was not killed"
            print(name, place, event, wrong_with(folder, ids, kept), flush=True)
            change()  # what was left half done does not hinder it
            assert wrong_with(folder, ids, kept) == "whole"


def begin(folder: Path, bundles: list[Path], refused: bool) -> None:
    """Make the second bundle current, and refused or not, and the first previous; the third is not there."""
    for copy in folder.glob(f"{bundles[2].name}-*"):
        shutil.rmtree(copy)
    install(bundles[0], folder)
    install(bundles[1], folder)
    if refused:
        refuse(folder, bundles)


def refuse(folder: Path, bundles: list[Path]) -> None:
    """Load the second bundle and refuse it, as a server does; it is still the one that should serve."""
    loads, name = Loads(folder), bundle_at(folder).name
    with loads.loading(name):
        pass
    loads.refuse(name, "It does not write its golden tokens.")
    assert Bundle(folder).manifest.bundle_id == Bundle(bundles[1]).manifest.bundle_id and not loads.is_good(name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), [Path(name) for name in sys.argv[4:]])
