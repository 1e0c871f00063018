"""Run the demo (`make demo`): build a bundle, serve it, request a report about a simulated DICOM study, compare with the truth.

Each step is a command that an integrator would type; it is printed before it runs. Only the build needs PyTorch: `--bundle` serves one
that another computer has built.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.served import arguments, script, serving
from demo.corpus import facts, parse_report
from demo.simulate import simulate
from demo.truth import Truth
from echovlm_edge.runtime.contracts.command import run_command
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.tables import names, new_table, print_table
from echovlm_edge.runtime.contracts.tasks import Language

CHECKPOINT = Path("demo/checkpoint")
BUNDLE = Path("bundles/demo")
SEED = 23  # seed of a held-out study: one of its frames shows a nodule
FRAMES = 3  # of that study
LIMITS = """\
The model knows only simulated images, of one finding or none, and has no medical value. It was trained on studies of one to four frames
and on conversations of up to three requests."""
PAGE = "\nTo see a picture go in and a report come out: make demo-console, then open http://127.0.0.1:8080/"


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m demo.run", description="Build and serve a bundle, and ask it.")
    parser.add_argument(
        "--bundle", type=Path, metavar="DIR", help="serve this bundle of the demo instead of building it"
    )
    options = parser.parse_args(arguments)
    return run_command(lambda: demo(options.bundle))


def demo(bundle: Path | None) -> int:
    """Run the demo's commands one by one, with a built bundle or with one that they build."""
    if bundle is None:
        bundle = BUNDLE
        run("echovlm-build", "--checkpoint", CHECKPOINT, "--output", bundle, "--replace")
    truth = simulate(SEED, FRAMES).truth
    with tempfile.TemporaryDirectory() as folder:
        run("python", "-m", "demo.simulate", "--seed", SEED, "--frames", FRAMES, "--output", folder)
        show("echovlm-serve", *arguments(bundle, Path(folder)))
        # The log goes to a file: a line per call would be mixed with the reports.
        with serving(bundle, Path(folder), stdout=None) as served:
            images = [word for file in sorted(Path(folder).glob("*.dcm")) for word in ("--image", file)]
            ask: tuple[object, ...] = ("--server", served.address, *images)
            try:
                run("echovlm-report", *ask)
                run("echovlm-report", *ask, "--language", "zh")
                reports = {
                    language: answer("echovlm-report", *ask, "--language", language.value) for language in Language
                }
            except Exception:
                print(served.log.read_text(encoding="utf-8"), file=sys.stderr)
                raise
    print_table(Console(), side_by_side(truth, reports))
    print(LIMITS)
    print(PAGE)
    return 0


def side_by_side(truth: Truth, reports: dict[Language, dict[str, Any]]) -> Table:
    """Print the study's truth next to each report."""
    headings = ("fact", "truth", *(f"report, {language.value}" for language in reports))
    table = new_table("truth and report", *map(names, headings))
    said = [parse_report(report["text"], language) for language, report in reports.items()]
    for fact in ("region", "kind", "side", "size_mm"):
        values = [getattr(one, fact) for one in (facts(truth), *said)]
        words = ["none" if value is None else str(getattr(value, "value", value)) for value in values]
        marks = [word if word == words[0] else f"[red]{word}[/red]" for word in words]
        table.add_row(fact.replace("_", ", "), *marks)
    return table


def show(command: str, *arguments: object) -> list[str]:
    """Print a command as a user would type it; returns it with its full path."""
    words = [command, *map(str, arguments)]
    print(f"\n$ {shlex.join(words)}", flush=True)
    return [script(command), *words[1:]]


def run(command: str, *arguments: object) -> None:
    """Show and run a command.

    Raises:
        NotPossibleHere: it failed; it has said why.
    """
    if subprocess.run(show(command, *arguments), check=False).returncode:
        raise NotPossibleHere(f"{command} failed: see above.")


def answer(command: str, *arguments: object) -> dict[str, Any]:
    """Run a command with --json and return its parsed output."""
    words = [script(command), *map(str, arguments), "--json"]
    parsed: dict[str, Any] = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    return parsed


if __name__ == "__main__":
    sys.exit(main())
