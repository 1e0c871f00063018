"""Progress bars, one for each stage of a build."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

import rich.progress
from rich.console import Console

SPEED_OVER = 1800  # seconds from which the time that is left is estimated: layers take minutes, and differ


class Progress:
    """Progress bars, one a stage; stages without a measure pulse."""

    def __init__(self, console: Console) -> None:
        """Draw on `console`."""
        self._bars = rich.progress.Progress(
            rich.progress.TextColumn("{task.description:<24}"),
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TimeRemainingColumn(),
            console=console,
            speed_estimate_period=SPEED_OVER,
        )

    def __enter__(self) -> Progress:
        """Start drawing."""
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing."""
        self._bars.stop()

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Show one stage; yields the function that reports its progress, in units of `total`."""
        task = self._bars.add_task(name, total=total)
        yield lambda amount: self._bars.advance(task, amount)
        self._bars.update(task, total=total or 1, completed=total or 1)

    def note(self, sentence: str) -> None:
        """Print a sentence above the bars."""
        self._bars.console.print(sentence, style="yellow", highlight=False, markup=False, soft_wrap=True)
