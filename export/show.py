"""What a build shows: a progress bar per stage, and the summary table."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

import rich.progress
from rich import box
from rich.console import Console
from rich.table import Table

from echovlm_edge.runtime.bundle import TOKEN_EMBEDDING, Manifest, Parity

_TOOLS = ("echovlm-edge", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "torch")


class Progress:
    """Progress bars, one a stage; stages without a measure pulse."""

    def __init__(self, console: Console) -> None:
        """Draw on `console`."""
        self._bars = rich.progress.Progress(
            rich.progress.TextColumn("{task.description:<24}"),
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            rich.progress.TimeElapsedColumn(),
            console=console,
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
        """One stage; yields what to tell how far it is, in units of `total`."""
        task = self._bars.add_task(name, total=total)
        yield lambda amount: self._bars.advance(task, amount)
        self._bars.update(task, total=total or 1, completed=total or 1)


def versions() -> dict[str, str]:
    """The toolchain, for bundle.json."""
    return {"python": platform.python_version(), **{tool: version(tool) for tool in _TOOLS}}


def print_summary(manifest: Manifest, output: Path, warning: str) -> None:
    """The table at the end of a build: part, file, size, precision, parity with the PyTorch model."""
    table = Table(
        box=box.SIMPLE, title=f"{output}: {manifest.source.name}, target {manifest.target}, {manifest.precision}"
    )
    for column in ("part", "MB", "weights", "error", "relative", "top-1", "KL"):
        table.add_column(column, justify="left" if column in ("part", "weights") else "right", no_wrap=True)
    for part in manifest.parts:
        stages = ("prefill", "decode") if part.name == "decoder" else (part.name,)
        size = sum(file.bytes for file in part.files) / 1e6
        for stage in stages:
            row = _parity_cells([entry for entry in manifest.parity if entry.stage == stage])
            if stage == stages[0]:
                table.add_row(part.files[0].name, f"{size:,.1f}", part.precision, *row)
            else:
                table.add_row(f"  its {stage} steps", "", "", *row)
    for file in manifest.files:
        embedding = file.name == TOKEN_EMBEDDING
        row = _parity_cells([entry for entry in manifest.parity if embedding and entry.stage == "token_embedding"])
        precision = manifest.embedding.dtype if embedding else ""
        table.add_row(file.name, f"{file.bytes / 1e6:,.1f}", precision, *row)
    if takes := manifest.footprint:
        context = f"{manifest.limits.max_batch} x {manifest.limits.max_sequence:,} tokens"
        table.caption = f"To run: {takes.to_run / 1e9:.2f} GB of memory, {takes.kv_cache_batch / 1e9:.2f} of it the KV cache of {context}"
    console = Console()
    console.print(table)
    if warning:
        console.print(f"[yellow]note:[/yellow] {warning}", highlight=False, soft_wrap=True)


def _parity_cells(stages: list[Parity]) -> list[str]:
    """The worst of a stage's samples."""
    if not stages:
        return ["", "", "", ""]
    agreements = [stage.top1_agreement for stage in stages if stage.top1_agreement is not None]
    divergences = [stage.kl_divergence for stage in stages if stage.kl_divergence is not None]
    return [
        f"{max(stage.max_abs_error for stage in stages):.1e}",
        f"{max(stage.relative_error for stage in stages):.1e}",
        f"{min(agreements):.1%}" if agreements else "",
        f"{max(divergences):.1e}" if divergences else "",
    ]
