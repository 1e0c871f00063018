"""`make demo`: builds a bundle from the demo checkpoint, serves it, asks for a report about a simulated DICOM study, and
shows what the study is known to hold beside what the report says.

Each step is the command an integrator would type; it is printed before it runs.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from demo.corpus import facts, parse_report
from demo.simulate import simulate
from echovlm_edge.runtime.contracts.command import run_command
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.tables import names, new_table, print_table
from echovlm_edge.runtime.contracts.tasks import Language

CHECKPOINT = Path("demo/checkpoint")
BUNDLE = Path("bundles/demo")
SEED = 27  # of a held-out study
START_SECONDS = 60.0


def main() -> int:
    """Run the demo; returns its exit code."""
    return run_command(demo)


def demo() -> int:
    """The journey, command by command."""
    run("echovlm-build", "--checkpoint", CHECKPOINT, "--output", BUNDLE, "--replace")
    with tempfile.TemporaryDirectory() as folder:
        image, port_file = Path(folder, f"study-{SEED:06}.dcm"), Path(folder, "port")
        run("python", "-m", "demo.simulate", "--seed", SEED, "--output", folder)
        serve = show("echovlm-serve", "--bundle", BUNDLE, "--listen", "127.0.0.1:0", "--port-file", port_file)
        log = Path(folder, "serve.log")  # a line for each call would run into the reports
        with log.open("wb") as lines, subprocess.Popen(serve, stderr=lines) as server:
            try:
                ask = ("echovlm-report", "--server", f"127.0.0.1:{wait_for_port(server, port_file)}", "--image", image)
                run(*ask)
                run(*ask, "--language", "zh")
                reports = {language: answer(*ask, "--language", language.value) for language in Language}
            except Exception:
                print(log.read_text(encoding="utf-8"), file=sys.stderr)
                raise
            finally:
                server.send_signal(signal.SIGTERM)
                server.wait()
    print_table(Console(), side_by_side(reports))
    print("The model knows only simulated images and has no medical value.")
    return 0


def side_by_side(reports: dict[Language, dict[str, Any]]) -> Table:
    """Print the study's truth next to each report."""
    headings = ("fact", "truth", *(f"report, {language.value}" for language in reports))
    table = new_table("truth and report", *map(names, headings))
    truth = facts(simulate(SEED).truth)
    said = [parse_report(report["text"], language) for language, report in reports.items()]
    for fact in ("region", "kind", "side", "size_mm"):
        values = [getattr(one, fact) for one in (truth, *said)]
        words = ["none" if value is None else str(getattr(value, "value", value)) for value in values]
        marks = [word if word == words[0] else f"[red]{word}[/red]" for word in words]
        table.add_row(fact.replace("_", ", "), *marks)
    return table


def show(command: str, *arguments: object) -> list[str]:
    """Print a command as it would be typed; returns it with its full path."""
    words = [command, *map(str, arguments)]
    print(f"\n$ {shlex.join(words)}", flush=True)
    return [str(Path(sys.executable).with_name(command)), *words[1:]]


def run(command: str, *arguments: object) -> None:
    """Show and run a command.

    Raises:
        NotPossibleHere: it failed; it has said why.
    """
    if subprocess.run(show(command, *arguments), check=False).returncode:
        raise NotPossibleHere(f"{command} failed: see above.")


def answer(command: str, *arguments: object) -> dict[str, Any]:
    """What a command prints with --json."""
    words = [str(Path(sys.executable).with_name(command)), *map(str, arguments), "--json"]
    parsed: dict[str, Any] = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    return parsed


def wait_for_port(server: subprocess.Popen[bytes], port_file: Path) -> str:
    """The port that the server writes once it answers.

    Raises:
        NotPossibleHere: it stopped, or took too long.
    """
    give_up = time.monotonic() + START_SECONDS
    while not port_file.exists():
        if server.poll() is not None or time.monotonic() > give_up:
            raise NotPossibleHere("echovlm-serve did not start: see above.")
        time.sleep(0.05)
    return port_file.read_text(encoding="utf-8").strip()


if __name__ == "__main__":
    sys.exit(main())
