"""Run one phase of a training: learning rate, clipping, progress, and saving so that a killed phase resumes to the same bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from demo.training.shards import Shard
from echovlm_edge.runtime.contracts.errors import NotPossibleHere

WARM_STEPS = 100
LAST_RATE = 0.02  # of the highest


def progress_bar(console: Console) -> Progress:
    """Make the progress bar of a training's phases: steps, time taken, time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
    )


@dataclass(frozen=True)
class Saving:
    """How phases save their state and show their progress.

    Attributes:
        folder: of the state files, one for each phase.
        made_by: settings that the training depends on; a state that others saved is refused.
        every: steps between two saves.
        progress: a bar for each phase.
        shard: which process this is; the first one saves.
    """

    folder: Path
    made_by: dict[str, Any]
    every: int
    progress: Progress
    shard: Shard = field(default_factory=Shard)


class Run:
    """One phase: `steps` optimizer steps; the optimizer's rates are the highest ones, they rise linearly and fall by half a cosine."""

    def __init__(
        self, phase: str, steps: int, optimizer: torch.optim.Optimizer, model: nn.Module, saving: Saving
    ) -> None:
        self._phase, self._steps, self._optimizer, self._model, self._saving = phase, steps, optimizer, model, saving
        self._rates = [group["lr"] for group in optimizer.param_groups]
        self._state = saving.folder / f"{phase}.pt"
        self._step, self._learned, self._smooth = 0, 0, 0.0
        self._task = saving.progress.add_task(phase, total=steps)

    def steps(self) -> Iterator[int]:
        """Yield the steps that are left; each must end with `learn`.

        Raises:
            NotPossibleHere: the saved state is of a training with other settings.
        """
        if self._state.is_file():
            saved = torch.load(self._state, weights_only=True)
            if saved["made_by"] != self._saving.made_by:
                raise NotPossibleHere(
                    f"{self._state} is from a training with other settings: delete it, or give another --cache."
                )
            self._model.load_state_dict(saved["model"])
            self._optimizer.load_state_dict(saved["optimizer"])
            self._step = saved["step"]
            self._saving.progress.update(self._task, completed=self._step)
        while self._step < self._steps:
            yield self._step

    def learn(self, loss: Tensor) -> None:
        """Make one optimizer step."""
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * self._share(self._step)
        self._optimizer.zero_grad()
        loss.backward()
        self._saving.shard.average(self._model.parameters())
        nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._step, self._learned = self._step + 1, self._learned + 1
        self._smooth = 0.98 * self._smooth + 0.02 * loss.item()
        shown = self._smooth / (1 - 0.98**self._learned)
        self._saving.progress.update(self._task, advance=1, description=f"{self._phase}, loss {shown:.3f}")
        if self._saving.shard.leads and (self._step % self._saving.every == 0 or self._step == self._steps):
            self._save()

    def _share(self, step: int) -> float:
        warm = min(1.0, (step + 1) / WARM_STEPS)
        return warm * (LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * step / self._steps)))

    def _save(self) -> None:
        partial = self._state.with_suffix(".partial")
        saved = {
            "made_by": self._saving.made_by,
            "step": self._step,
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }
        torch.save(saved, partial)
        partial.replace(self._state)
