"""`echovlm-evaluate compare`: show what differs between two runs, as tables, a page and the exit code."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from echovlm_edge.runtime.evaluation import table
from echovlm_edge.runtime.evaluation.comparison import compare
from echovlm_edge.runtime.evaluation.schema import read

SAME_OR_BETTER, WORSE = 0, 1  # 2 is a user's error: see `runtime.contracts.command`
EXIT_CODES = "Exit codes: 0 nothing is significantly worse; 1 a figure is; 2 a wrong option or file."


def run(options: argparse.Namespace) -> int:
    """Compare two runs, show and write the result; returns the exit code."""
    before, after = read(options.before), read(options.after)
    found = compare(before, after, _labels(options.before, options.after))
    if options.html:
        from echovlm_edge.runtime.evaluation.drawing.comparison_page import comparison_page
        from echovlm_edge.runtime.resources.atomic_file import write_whole

        write_whole(options.html, comparison_page(found, options.images).encode())
    console = Console()
    table.print_comparison(console, found)
    console.print(found.summary, highlight=False, markup=False)
    return WORSE if found.worse else SAME_OR_BETTER


def _labels(before: Path, after: Path) -> tuple[str, str]:
    """Return the runs' names, or their paths where those do not differ."""
    return (before.name, after.name) if before.name != after.name else (str(before), str(after))


def add_command(commands: Any) -> None:
    """Declare the command and its options."""
    made = commands.add_parser(
        "compare",
        help="compare two runs",
        description="Compare two runs over the rows that both have.",
        epilog=EXIT_CODES,
    )
    made.set_defaults(run=run)
    made.add_argument("before", type=Path, metavar="A", help="the --output folder of a run, or its evaluation.json")
    made.add_argument("after", type=Path, metavar="B", help="likewise; the change is from A to B")
    made.add_argument("--html", type=Path, metavar="F", help="write one page that works without a network")
    made.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="the folder of the rows' pictures, for small copies of them on that page",
    )
