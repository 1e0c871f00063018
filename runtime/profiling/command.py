"""`echovlm-profile`: choose what to do. Only measuring needs the engine; profiles are compared and drawn on any machine."""

from __future__ import annotations

import sys

from echovlm_edge.runtime.contracts.command import run_command

COMPARE, PAGE = "compare", "page"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code, see `outcome.ended`."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == [COMPARE]:
        from echovlm_edge.runtime.profiling import compare_command

        compared = compare_command.compare_parser().parse_args(given[1:])
        return run_command(lambda: compare_command.run(compared))
    if given[:1] == [PAGE]:
        from echovlm_edge.runtime.profiling import page_command

        drawn = page_command.page_parser().parse_args(given[1:])
        return run_command(lambda: page_command.run(drawn))
    from echovlm_edge.runtime.profiling import measure_command

    measured = measure_command.measure_parser().parse_args(given)
    return run_command(lambda: measure_command.run(measured))
