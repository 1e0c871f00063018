"""What every command does at its edge: a user's error becomes one sentence and its exit code, never a traceback."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from echovlm_edge.runtime.contracts.errors import UserError

INTERRUPTED = 130
SEVERAL: dict[str, Any] = {"nargs": "+", "action": "extend"}  # an option's values add up, however often it is given
# One value each time: for commands with arguments, which an option of several values would take when it is given before them.
REPEATED: dict[str, Any] = {"action": "append"}


def add_version(parser: argparse.ArgumentParser) -> None:
    """Declare `--version`, which prints the command's name and the package's version and ends with exit code 0."""
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('echovlm-edge')}")


def run_command(command: Callable[[], int]) -> int:
    """Run a command's body; returns its exit code."""
    try:
        return command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
