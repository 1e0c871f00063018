"""What a build says at its end: the toolchain and the summary table."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from echovlm_edge.runtime.bundle import TOKEN_EMBEDDING, Manifest, Parity
from echovlm_edge.runtime.memory_model import BundleShape, When, Where, account, total
from echovlm_edge.runtime.serve_settings import ServeSettings

_TOOLS = ("echovlm-edge", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "torch")


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
    items = account(BundleShape.of(manifest), ServeSettings(bundle=output))
    start, used = (total(items, Where.HOST, *times) / 1e9 for times in ((When.START,), (When.START, When.USED)))
    card = total(items, Where.GPU, When.START, When.USED) / 1e9
    table.caption = f"echovlm-serve takes {start:.2f} GB of memory at start, up to {used:.2f} as it is used"
    table.caption += f", and {card:.2f} GB of the GPU's" if card else ""
    console = Console()
    console.print(table)
    for note in filter(None, (warning, *_notes(manifest, output))):
        console.print(f"[yellow]note:[/yellow] {note}", highlight=False, soft_wrap=True)


def _notes(manifest: Manifest, output: Path) -> Iterator[str]:
    """What the table does not say of a bundle for a GPU."""
    if manifest.parity_of == "graphs":
        yield "the errors are of the graphs, run by ONNX Runtime on this CPU; what runs on the GPU has not been compared."
    elif not manifest.parity:
        yield "nothing was compared with PyTorch, since this install has no operator library, for want of a C++ compiler."
    if manifest.finish_with:
        yield f"the engines are still to be built: copy {output} to the device and run {manifest.finish_with} there."


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
