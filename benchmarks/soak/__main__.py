"""Load a server with many clients for minutes, with cancels, deadlines and dropped connections, and check it (`make soak`).

Every finished text must equal the one that a single client gets; no slot, place or memory may leak; a full queue must refuse
immediately; batched decoding must be faster than single calls; a prefilled study must answer as fast as a short text prompt. Five of
the sixteen clients speak HTTP, with the same checks; two are hostile, and must not change any of that.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from benchmarks.soak.findings import Soak, table_of
from benchmarks.soak.measurements import batching, beside_hostile, soak, studies
from benchmarks.soak.served import soaked
from echovlm_edge.runtime.contracts.command import run_command
from echovlm_edge.runtime.contracts.tables import print_table


def main() -> int:
    """Run the soak; returns its exit code: 1 if a check failed."""
    parser = argparse.ArgumentParser(description="Load a server for minutes and check what must hold.")
    parser.add_argument("--bundle", type=Path, default=Path("bundles/demo"))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--json", type=Path, default=Path("soak.json"))
    options = parser.parse_args()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server does not outlive this

    def command() -> int:
        console = Console()
        machine = f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}"
        found = Soak(machine, str(options.bundle), options.minutes)
        with tempfile.TemporaryDirectory() as folder:
            with soaked(options.bundle, Path(folder), "--debug-ignore-stop", "--drafting", "off") as served:
                batching(served, found)
            with soaked(options.bundle, Path(folder)) as served:
                studies(served, found)
                beside_hostile(served, found)
                soak(served, found, console)
        held = {what: holds for what, (_, holds) in found.checks().items()}
        options.json.write_text(json.dumps({**asdict(found), "holds": held}, indent=1), encoding="utf-8")
        print_table(console, table_of(found))
        return 0 if all(held.values()) else 1

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
