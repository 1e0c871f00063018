"""Write a page per device into docs/devices, from the archives that echovlm-accept made there.

python -m benchmarks.devices ARCHIVE [ARCHIVE ...] [--folder docs/devices]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from echovlm_edge.runtime.contracts.command import run_command
from echovlm_edge.runtime.doctor.acceptance.archive import read_archive, slug
from echovlm_edge.runtime.doctor.acceptance.schema import Acceptance, State

FOLDER = Path(__file__).parents[1] / "docs/devices"
WRITTEN = "*Written by `python -m benchmarks.devices` from an archive of `echovlm-accept`; not edited by hand.*"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code.

    Raises:
        InvalidInput: an archive cannot be read, or has changed since it was written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.devices", description="Write docs/devices from archives."
    )
    parser.add_argument("archives", type=Path, nargs="+", metavar="ARCHIVE")
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, metavar="DIR", help="for the pages (default docs/devices)"
    )
    options = parser.parse_args(arguments)
    accepted = [read_archive(path) for path in options.archives]
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(slug(one.machine) for one in accepted):
        of_device = sorted((one for one in accepted if slug(one.machine) == name), key=lambda one: one.created)
        file = options.folder / f"{name}.md"
        file.write_text(page(of_device), encoding="utf-8")
        print(file)
    return 0


def page(accepted: Sequence[Acceptance]) -> str:
    """Make a device's page of its acceptances, the newest first."""
    machine = accepted[-1].machine
    lines = [f"# {machine.device or machine.gpu or machine.cpu}", "", WRITTEN, ""]
    for one in reversed(accepted):
        lines += [*section(one), ""]
    return "\n".join(lines).rstrip() + "\n"


def section(one: Acceptance) -> list[str]:
    """Make the section of one acceptance: the machine, the steps, the figures."""
    machine, bundle = one.machine, one.bundle
    quick = ", with few and short runs: the figures mean little" if one.quick else ""
    parts = (machine.cpu, f"{machine.cores} cores", f"{machine.memory_gb:g} GB", machine.gpu, machine.system)
    lines = [
        f"## {one.created[:10]}, {bundle.model} ({bundle.precision} for {bundle.target})",
        "",
        f"**{'Passed' if one.passed else 'Not passed'}**{quick}. {', '.join(filter(None, parts))}; bundle {bundle.bundle_id}.",
        "",
        *(f"- {sentence}" for sentence in one.failures),
        *([""] if one.failures else []),
    ]
    steps = ((step.name, step.state.value, f"{step.seconds:,.0f}", step.reason) for step in one.steps)
    figures = (
        (
            figure.name,
            "not measured" if figure.value is None else f"{figure.value:,.4g}",
            figure.limit or "none",
            figure.state.value if figure.limit else "not judged",
        )
        for figure in one.judged
    )
    lines += _table(("step", "result", "s", "reason"), steps)
    lines += ["", *_table(("figure", "measured", "limit", "result"), figures)]
    skipped = [
        f"- {step.name}, {check.what}: {check.detail}"
        for step in one.steps
        for check in step.outcome.checks
        if check.state is State.SKIPPED
    ]
    return [*lines, *(["", "Not checked or not reported there:", "", *skipped] if skipped else [])]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = (head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows))
    return [f"| {' | '.join(row)} |" for row in cells]


if __name__ == "__main__":
    sys.exit(run_command(main))
