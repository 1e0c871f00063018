"""`echovlm-profile compare`: show what changed from one profile to another, as tables, a page and the exit code."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from echovlm_edge.runtime.contracts.command import REPEATED
from echovlm_edge.runtime.profiling import table
from echovlm_edge.runtime.profiling.comparison.bounds import Bound, ChangeBound, broken, judged, parse
from echovlm_edge.runtime.profiling.comparison.compare import SAME, TOLERANCE, Margins, compare, slower
from echovlm_edge.runtime.profiling.outcome import ended
from echovlm_edge.runtime.profiling.page_command import write_page
from echovlm_edge.runtime.profiling.schema import read

EXIT_CODES = (
    "Exit codes: 0 nothing is slower for certain and every assertion holds; 1 a figure is slower for certain, or an assertion "
    "is broken; 2 a wrong option or file; 3 an assertion that these runs cannot decide: it does not pass, measure more "
    "runs. Figures that cannot be told apart change the exit code only where an assertion is about them: "
    "--assert 'change<10%' fails unless every figure is for certain less than 10% slower."
)


def run(options: argparse.Namespace) -> int:
    """Compare two profiles, show and write the result; returns the exit code."""
    margins = _margins(options)
    before, after = read(options.before), read(options.after)
    bounds = [parse(text) for text in options.bounds]
    found = compare(before, after, margins)
    result = judged(found, [bound for bound in bounds if isinstance(bound, ChangeBound)])
    console = Console()
    for workload, figures in found.items():
        for part in table.comparison(workload, figures, margins):
            console.print(part)
    console.print(table.how_to_read(margins), highlight=False)
    if options.html:
        write_page(options.html, [options.before, options.after], [before, after], margins)
    of_after = broken(after, [bound for bound in bounds if isinstance(bound, Bound)])
    return ended([*slower(found), *of_after, *result.broken], result.unknown)


def _margins(options: argparse.Namespace) -> Margins:
    tolerance = options.tolerance / 100
    return Margins(tolerance, max(SAME, tolerance) if options.margin is None else options.margin / 100)


def compare_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="echovlm-profile compare",
        description="Compare two profiles: what is slower, faster or the same for certain, and what is undecided.",
        epilog=EXIT_CODES,
    )
    add = made.add_argument
    add("before", type=Path, metavar="BEFORE.json")
    add("after", type=Path, metavar="AFTER.json")
    add(
        "--tolerance",
        type=float,
        default=100 * TOLERANCE,
        metavar="PERCENT",
        help=f"slower or faster is what changed by more for certain: two processes differ by so much with nothing changed "
        f"(default {100 * TOLERANCE:g})",
    )
    add(
        "--margin",
        type=float,
        metavar="PERCENT",
        help=f"the same is what changed by no more for certain (default {100 * SAME:g}, or the tolerance where that is more)",
    )
    add("--html", type=Path, metavar="F", help="write a page of both")
    add(
        "--assert",
        dest="bounds",
        **REPEATED,
        default=[],
        metavar="BOUND",
        help="[WORKLOAD.]FIGURE_change<N%% or change<N%%, for every figure: judged by the whole interval; or a bound on the "
        "second profile as for echovlm-profile: judged by the figure as measured; again for each further bound",
    )
    return made
