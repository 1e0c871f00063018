"""`echovlm-evaluate`: choose what to do. Only a run in this process needs the engine; runs are compared on any machine."""

from __future__ import annotations

import argparse

from echovlm_edge.runtime.contracts.command import add_version, run_command
from echovlm_edge.runtime.evaluation import compare_command
from echovlm_edge.runtime.evaluation import run_command as evaluate_command


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="echovlm-evaluate",
        description="Ask a model the questions of a data set and score its answers; compare two runs.",
    )
    add_version(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    evaluate_command.add_command(commands)
    compare_command.add_command(commands)
    options = parser.parse_args(arguments)
    return run_command(lambda: int(options.run(options)))
