"""Compare our bundle with llama.cpp and OpenVINO GenAI on the same weights, alternating in one run (`make bench-peers`).

python -m benchmarks.peers [--layers 28] [--turns 5] [--json build/peers.json] [--page docs/performance-peers.md]

A random checkpoint of Qwen2.5-VL-7B's shapes is converted by each one's own tools. What is installed, converted and compared in
build/peers is reused, so that a run can be interrupted; `--prepare` ends before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.limits import Limits
from benchmarks.peers.all_peers import PEERS
from benchmarks.peers.checkpoint import peers_checkpoint
from benchmarks.peers.environments import BUILD
from benchmarks.peers.ours import BUNDLE
from benchmarks.peers.parity import compare
from benchmarks.peers.peer import CannotTakePart, Peer, Task
from benchmarks.peers.report import Report, faults, markdown, measured, on_page
from benchmarks.peers.workload import w1_task
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.contracts.command import SEVERAL, run_command
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.profiling.measurement.machine import this_machine
from echovlm_edge.runtime.resources.processors import usable_processors
from echovlm_edge.runtime.resources.thread_priority import COMPUTING


def prepared(folder: Path, peers: Sequence[Peer]) -> tuple[list[Peer], dict[str, str]]:
    """Convert the checkpoint for every peer; returns those that take part, and why each other one does not."""
    present, missing = list[Peer](), dict[str, str]()
    for peer in peers:
        try:
            peer.prepare(folder)
        except CannotTakePart as reason:
            print(f"{peer.name} takes no part: {reason}", file=sys.stderr, flush=True)
            missing[peer.name] = str(reason)
        else:
            present.append(peer)
    return present, missing


def in_process(peer: Peer, task: Path, result: Path, *options: str) -> None:
    """Run one peer's process until it ends; its output goes to a file beside the result.

    Raises:
        NotPossibleHere: it failed; the sentence names the file.
    """
    # Our engine lowers its threads' priority by itself: all others have the same, or what else runs would slow ours alone.
    module = (peer.python, "-m", "benchmarks.peers.process")
    command = ("nice", "-n", str(COMPUTING), *module, peer.name, str(task), str(result), *options)
    log = result.with_suffix(".log")
    with log.open("w", encoding="utf-8") as lines:
        done = subprocess.run(command, stdout=lines, stderr=lines, check=False)
    if done.returncode:
        raise NotPossibleHere(f"{peer.name} ended with exit code {done.returncode}: {log} has its output.")


def take_turns(task: Task, peers: Sequence[Peer], turns: int, limits: Limits) -> Iterator[dict[str, Any]]:
    """Measure all peers one after the other, so often; yields each turn's results by peer."""
    folder = Path(task.folder)
    for turn in range(turns):
        results = {}
        order = peers if turn % 2 == 0 else peers[::-1]
        for peer in order:
            print(f"turn {turn + 1} of {turns}: {peer.name}", file=sys.stderr, flush=True)
            result = folder / f"{peers.index(peer)}.json"
            in_process(peer, folder / "task.json", result)
            results[peer.name] = json.loads(result.read_text(encoding="utf-8"))
            limits.read()
        yield {peer.name: results[peer.name] for peer in peers}


def main() -> int:
    """Run the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(description="Compare our bundle with llama.cpp and OpenVINO GenAI.")
    add = parser.add_argument
    add("--layers", type=int, default=4, help="of the decoder (default 4; all are 28)")
    add("--turns", type=int, default=5)
    add("--threads", type=int, default=usable_processors())
    add("--only", **SEVERAL, choices=[peer.name for peer in PEERS[1:]], help="peers beside ours (default: all)")
    add("--json", type=Path, default=Path("build/peers.json"))
    add("--page", type=Path, help="a page whose table is replaced")
    add("--prepare", action="store_true", help="end when all is converted and its parity measured")
    options = parser.parse_args()
    folder = BUILD / str(options.layers)
    peers_checkpoint(folder / "checkpoint", options.layers)
    chosen = [peer for peer in PEERS if peer is PEERS[0] or not options.only or peer.name in options.only]
    present, missing = prepared(folder, chosen)
    if PEERS[0].name in missing:
        raise NotPossibleHere(f"Our own bundle could not be built: {missing[PEERS[0].name]}.")
    bundle = Bundle(folder / BUNDLE)
    task = w1_task(folder, bundle, options.threads)
    parity = compare(task, bundle, present, in_process)
    if options.prepare:
        return 0
    limits = Limits(options.threads, bundle.path / bundle.manifest.part("decoder").files[1].name)
    turns = list[dict[str, Any]]()
    for turn in take_turns(
        task, present, options.turns, limits
    ):  # what is measured is kept if a later turn is interrupted
        turns.append(turn)
        machine = asdict(this_machine()) | asdict(limits.machine())
        report = Report(machine, options.layers, turns, parity, faults(task, turns), missing)
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(asdict(report) | {"peers": measured(report)}, indent=1), encoding="utf-8")
    print(markdown(report))
    if options.page:
        on_page(options.page, report)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
