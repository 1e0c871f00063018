"""Train in two processes of one thread each, which average their gradients.

On two cores that takes less time than one process of two threads, which wait for each other after every short operation; and
the bytes do not depend on how many cores a machine has.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, multiprocessing, nn

SHARDS = 2


@dataclass(frozen=True)
class Shard:
    """One of the processes: each takes an equal share of every batch."""

    index: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Return whether this process writes the files and shows progress."""
        return self.index == 0

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each parameter's gradient by its mean over the processes; one that a process has no gradient for counts as 0."""
        if self.count == 1:
            return
        known = [(one, torch.zeros_like(one) if one.grad is None else one.grad) for one in parameters]
        flat = torch.cat([gradient.flatten() for _, gradient in known])
        distributed.all_reduce(flat)
        flat /= self.count
        pieces: list[Tensor] = list(flat.split([one.numel() for one, _ in known]))
        for (one, _), piece in zip(known, pieces, strict=True):
            one.grad = piece.view_as(one)


def in_shards(train: Callable[..., None], *arguments: object) -> None:
    """Call `train(shard, *arguments)` in each process.

    Raises:
        torch.multiprocessing.ProcessRaisedException: one of them failed; the other is ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_join, (str(Path(folder) / "meeting"), train, arguments), SHARDS)


def _join(index: int, meeting: str, train: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    store = distributed.FileStore(meeting, SHARDS)
    distributed.init_process_group("gloo", store=store, rank=index, world_size=SHARDS)
    try:
        train(Shard(index, SHARDS), *arguments)
    finally:
        distributed.destroy_process_group()
