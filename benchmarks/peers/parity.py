"""Measure how far each peer's logits are from the float32 PyTorch model's, on the same prompt and the same tokens behind it."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.peers.forced_logits import by_pytorch
from benchmarks.peers.peer import Peer, Task
from echovlm_edge.export.parity.parity import measure
from echovlm_edge.runtime.backends import Floats
from echovlm_edge.runtime.bundle.manifest import Bundle

Run = Callable[..., None]  # a peer, its task, its result, options


def compare(task: Task, bundle: Bundle, peers: Sequence[Peer], run: Run) -> dict[str, dict[str, float]]:
    """Return each peer's KL divergence (nats), its standard error, agreement of the likeliest token, and relative error of logits.

    Logits are kept in the task's folder, under a name that changes with the task.
    """
    folder = Path(task.folder)
    key = hashlib.sha256((folder / "task.json").read_bytes()).hexdigest()[:12]
    (folder / "logits").mkdir(exist_ok=True)
    expected_file = folder / "logits" / f"pytorch-{key}.npy"
    if not expected_file.is_file():
        print("PyTorch in float32, a layer at a time …", file=sys.stderr, flush=True)
        np.save(expected_file, by_pytorch(folder / "checkpoint", bundle, task.questions[0], task.forced))
    expected: Floats = np.load(expected_file)
    found = {}
    for peer in peers:
        file = folder / "logits" / f"{''.join(filter(str.isalnum, peer.name))}-{key}.npy"
        if not file.is_file():
            print(f"logits of {peer.name} …", file=sys.stderr, flush=True)
            partial = file.with_name(f"partial-{file.name}")
            run(peer, folder / "task.json", partial, "--logits")
            partial.rename(file)
        found[peer.name] = divergence(expected, np.load(file))
    return found


def divergence(expected: Floats, actual: Floats) -> dict[str, float]:
    """Compare logits [n, vocab_size] with the expected ones."""
    measured = measure("logits", "", expected, actual, logits=True)
    assert measured.kl_divergence is not None and measured.top1_agreement is not None
    return {
        "kl_divergence": measured.kl_divergence,
        "kl_standard_error": measured.kl_standard_error or 0.0,
        "top1_agreement": measured.top1_agreement,
        "relative_error": measured.relative_error,
    }
