"""Measure one peer in this process, which its own interpreter runs: `python -m benchmarks.peers.process NAME TASK RESULT [--logits]`."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.all_peers import peer_named
from benchmarks.peers.peer import Peer, Task

WARM_TOKENS = 4


def measure(peer: Peer, task: Task) -> dict[str, Any]:
    """Load a peer, warm it up, and ask every question once."""
    versions = dict(peer.versions())  # imports what loading needs
    started = time.perf_counter()
    peer.load(task)
    load = time.perf_counter() - started
    peer.ask(task.warm_up, WARM_TOKENS)
    answers = {
        question.name: asdict(peer.ask(question, 1 if place else task.new_tokens))
        for place, question in enumerate(task.questions)
    }
    return {
        "versions": versions,
        "load_seconds": load,
        "peak_rss_gb": resident_gb("VmHWM"),
        "anonymous_rss_gb": resident_gb("RssAnon"),
        "answers": answers,
    }


def resident_gb(kind: str) -> float:
    """Return this process's resident memory: at its peak (VmHWM), or without what it maps of files (RssAnon)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) * 1024 / 1e9


def main() -> None:
    """Write the result."""
    name, task_file, result, *options = sys.argv[1:]
    peer, task = peer_named(name), Task.read(Path(task_file))
    if options:
        np.save(result, peer.logits(task))
    else:
        Path(result).write_text(json.dumps(measure(peer, task)), encoding="utf-8")


if __name__ == "__main__":
    main()
