"""`echovlm-profile page`: write one HTML page of saved profiles."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from echovlm_edge.runtime.profiling.comparison.compare import DEFAULT, Margins
from echovlm_edge.runtime.profiling.drawing.html_page import html_page
from echovlm_edge.runtime.profiling.schema import Profile, read
from echovlm_edge.runtime.resources.atomic_file import write_whole


def run(options: argparse.Namespace) -> int:
    """Write the page; returns the exit code."""
    write_page(options.html, options.profiles, [read(path) for path in options.profiles])
    return 0


def write_page(file: Path, paths: Sequence[Path], profiles: Sequence[Profile], margins: Margins = DEFAULT) -> None:
    """Write the page of profiles, labelled by their files' names where those differ, else by their paths."""
    stems = [path.stem for path in paths]
    labels = stems if len(set(stems)) == len(stems) else [str(path) for path in paths]
    write_whole(file, html_page(dict(zip(labels, profiles, strict=True)), margins).encode())


def page_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="echovlm-profile page", description="Make a page of profiles; each is compared with the first."
    )
    made.add_argument("profiles", type=Path, nargs="+", metavar="PROFILE.json")
    made.add_argument("--html", type=Path, required=True, metavar="F")
    return made
