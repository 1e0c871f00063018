"""Measure what drafting saves (`make bench-drafting`): a decoder of the published width that is made to write held-out reports.

python -m benchmarks.drafting [--captions FILE…] [--layers 4] [--kernels avx2] [--json build/drafting.json]

With and without drafts in turn, for several sequences at once. Drafts come from a table of other reports' phrases, as a bundle has, and
from the text itself; the memory of the client's replies is off. Tokens a second are those of steps in which all sequences write.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.chosen_kernels import add_kernels, use_kernels
from benchmarks.drafting.measuring import Row, Writers, long_texts, made_bundle, measure
from benchmarks.drafting.texts import add_captions, drafting_texts
from echovlm_edge.export.build_options import SHARED_BY
from echovlm_edge.runtime.contracts.command import run_command
from echovlm_edge.runtime.contracts.tables import figures, new_table, print_table, words
from echovlm_edge.runtime.drafting.phrase_table import PhraseTable
from echovlm_edge.runtime.profiling.measurement.machine import this_machine


def print_rows(rows: Sequence[Row], title: str, note: str, console: Console) -> None:
    """Print a line for each measurement, with the ratio to that without drafts."""
    headings = ("sequences", "tokens\na step", "rows\na step", "ms\na step", "tokens/s", "ratio")
    table = new_table(title, words("drafting"), *map(figures, headings))
    without = {row.sequences: row.tokens_per_second for row in rows if not row.drafting}
    for row in rows:
        values = (row.tokens_per_step, row.rows_per_step, row.milliseconds_per_step, row.tokens_per_second)
        ratio = row.tokens_per_second / without[row.sequences]
        drafting = "on" if row.drafting else "off"
        table.add_row(drafting, str(row.sequences), *(f"{value:,.2f}" for value in values), f"{ratio:.2f}x")
    print_table(console, table)
    if note:
        console.print(note)


def main() -> int:
    """Run the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(description="Measure decoding with and without drafts from phrases.")
    add = parser.add_argument
    add_captions(parser)
    add("--layers", type=int, default=28, help="of the decoder (default 28: all)")
    add("--turns", type=int, default=4, help="how often everything is measured (default 4)")
    add("--threads", type=int, help="of the decoder (default: usable processors)")
    add_kernels(parser)
    add(
        "--folder",
        type=Path,
        default=Path("build"),
        help="where the bundle of random weights is or will be (default build)",
    )
    add("--json", type=Path, default=Path("build/drafting.json"))
    options = parser.parse_args()
    use_kernels(options.kernels)
    console = Console()
    texts = drafting_texts(options.captions)
    bundle = made_bundle(options.folder / f"drafting-{options.layers}", options.layers, Console(stderr=True))
    table = PhraseTable.build(texts.store, SHARED_BY, texts.studies)
    writers = Writers(bundle, long_texts(texts), table, options.threads)
    writers.write(0, 1, drafting=True)  # maps the weights
    rows = measure(writers, options.turns)
    writers.close()
    machine = asdict(this_machine())
    title = f"{options.layers} layers, {machine['cpu']} ({machine['kernels']}); {len(texts.store):,} reports of {texts.name}"
    print_rows(rows, title, texts.note, console)
    report: dict[str, Any] = {
        "machine": machine,
        "layers": options.layers,
        "texts": texts.name,
        "reports": len(texts.store),
        "note": texts.note,
        "rows": [asdict(row) for row in rows],
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
