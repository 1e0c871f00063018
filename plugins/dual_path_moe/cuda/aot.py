"""Compile every kernel for every device into one archive of cubins, and print each kernel's resource usage.

python -m echovlm_edge.plugins.dual_path_moe.cuda.aot --output kernels.cubins [--sm 87 120] [--table resources.json]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from echovlm_edge.plugins.dual_path_moe.cuda.archive import Record, write_archive

if TYPE_CHECKING:
    from echovlm_edge.plugins.dual_path_moe.cuda.resources import Resources
    from echovlm_edge.plugins.dual_path_moe.cuda.variants import Variant

DEVICES = {
    80: "A100",
    86: "RTX 30, RTX A",
    87: "Jetson Orin, IGX Orin",
    89: "RTX 40, L4",
    90: "H100, H200",
    100: "B200",
    103: "B300",
    110: "Jetson Thor",
    120: "RTX 50, RTX PRO",
    121: "DGX Spark",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 2 for an error that the user can fix, 1 for a kernel that must not be shipped."""
    options = _parser().parse_args(arguments)
    if importlib.util.find_spec("triton") is None:
        return _refuse("Triton is missing: install echovlm-edge[cuda-kernels].", 2)
    if not options.output.parent.is_dir():
        return _refuse(f"{options.output.parent} is not a folder: create it, or choose another --output.", 2)
    from echovlm_edge.plugins.dual_path_moe.cuda.compile import KernelRefused, source_hash

    console = Console()
    try:
        built = build(sorted(set(options.sm or DEVICES)), options.jobs, console)
    except KernelRefused as refused:
        return _refuse(str(refused), 1)
    write_archive(options.output, [(record, cubin) for _, record, cubin, _ in built], source_hash())
    rows = [{"variant": variant.label, **asdict(record), **asdict(used)} for variant, record, _, used in built]
    if options.table:
        options.table.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    console.print(summary(rows, options.output))
    return 0


def build(sms: Sequence[int], jobs: int, console: Console) -> list[tuple[Variant, Record, bytes, Resources]]:
    """Compile every variant for each device, in the archive's order: by device, then as `variants` lists them.

    Raises:
        KernelRefused: the first kernel that must not be shipped; the others are not waited for.
    """
    from echovlm_edge.plugins.dual_path_moe.cuda.compile import compile_variant
    from echovlm_edge.plugins.dual_path_moe.cuda.variants import variants

    wanted = [(variant, sm) for sm in sms for variant in variants(sm)]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    context = multiprocessing.get_context("spawn")  # the compiler has threads
    with (
        Progress(*columns, console=console) as progress,
        ProcessPoolExecutor(jobs, mp_context=context) as pool,
    ):
        task = progress.add_task("Compiling kernels", total=len(wanted))
        running = {pool.submit(compile_variant, *one): place for place, one in enumerate(wanted)}
        done: dict[int, tuple[Record, bytes, Resources]] = {}
        try:
            for future in as_completed(running):
                done[running[future]] = future.result()
                progress.advance(task)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [(variant, *done[place]) for place, (variant, _) in enumerate(wanted)]


def summary(rows: Sequence[dict[str, Any]], output: Path) -> Table:
    """Print a row per device and kernel: the highest usage of its variants, and the narrowest load of weights."""
    table = Table(title=f"{output}: {len(rows)} kernels, {output.stat().st_size / 1e6:.1f} MB", box=None)
    for heading in ("SM", "kernel"):
        table.add_column(heading)
    for heading in ("variants", "registers", "spills", "shared, KiB", "tensor-core products", "bytes a weight load"):
        table.add_column(heading, justify="right")
    for (sm, kernel), some in _groups(rows):
        narrowest = min(row["weight_load_bytes"] for row in some)
        table.add_row(
            str(sm),
            kernel,
            str(len(some)),
            str(max(row["registers"] for row in some)),
            str(max(row["spills"] for row in some)),
            f"{max(row['shared_bytes'] for row in some) / 1024:.0f}",
            str(min(row["tensor_core_products"] for row in some)),
            str(narrowest or "-"),
        )
    return table


def _groups(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[tuple[int, str], list[dict[str, Any]]]]:
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["sm"], row["kernel"]), []).append(row)
    return iter(groups.items())


def _refuse(sentence: str, code: int) -> int:
    print(sentence, file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    known = ", ".join(f"{sm} ({name})" for sm, name in DEVICES.items())
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="the archive")
    parser.add_argument(
        "--sm",
        type=int,
        nargs="+",
        action="extend",
        choices=list(DEVICES),
        metavar="SM",
        help=f"devices: {known}",
    )
    parser.add_argument("--table", type=Path, help="write what each kernel uses to this JSON file")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
