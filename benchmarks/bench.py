"""Run every benchmark that takes only minutes (`make bench`) into one JSON file, from which docs/performance.md is written.

python -m benchmarks.bench [--json build/bench.json] [--only dual_path_moe decoder stages profile checks]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from echovlm_edge.runtime.contracts.command import SEVERAL
from echovlm_edge.runtime.profiling.measurement.machine import this_machine

SCHEMA, VERSION = "echovlm-bench", 1
DEMO = Path("bundles/demo")
PROFILE = "import sys; from echovlm_edge.runtime.profiling.command import main; sys.exit(main(sys.argv[1:]))"
BUILD = "import sys; from echovlm_edge.export.build_engines import main; sys.exit(main(sys.argv[1:]))"


def benchmarks(bundle: Path) -> dict[str, Sequence[str]]:
    """The arguments of Python for each, in the order they run; each takes `--json F`."""
    return {
        "dual_path_moe": ["-m", "benchmarks.dual_path_moe", "--tokens", "1", "8", "64", "256", "--runs", "15"],
        "decoder": ["-m", "benchmarks.decoder"],
        "stages": ["-m", "benchmarks.stages"],
        "profile": ["-c", PROFILE, "--bundle", str(bundle), "--workload", "W1", "W7", "Q", "--runs", "10"],
        "checks": ["-m", "benchmarks.profiling_checks", "--bundle", str(bundle)],
    }


def main() -> int:
    """Run the benchmarks; returns the exit code: 1 if one failed, and then nothing is written."""
    parser = argparse.ArgumentParser(description="Run all benchmarks into one JSON file.")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"))
    parser.add_argument("--bundle", type=Path, default=DEMO, help="for profile and checks (default: the demo's)")
    parser.add_argument(
        "--only", **SEVERAL, choices=list(benchmarks(DEMO)), help="the others stay as the file has them"
    )
    options = parser.parse_args()
    chosen = options.only or list(benchmarks(DEMO))
    if options.bundle == DEMO and not DEMO.exists():
        subprocess.run(
            [sys.executable, "-c", BUILD, "--checkpoint", "demo/checkpoint", "--output", str(DEMO)], check=True
        )
    results = _before(options.json) if options.only else {}
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen:
            print(f"— {name}", flush=True)
            file = Path(folder) / f"{name}.json"
            done = subprocess.run([sys.executable, *benchmarks(options.bundle)[name], "--json", str(file)], check=False)
            if done.returncode or not file.exists():
                print(f"{name} failed with exit code {done.returncode}: nothing was written.", file=sys.stderr)
                return 1
            results[name] = {"measured": _now(), "result": json.loads(file.read_text(encoding="utf-8"))}
    report = {
        "schema": SCHEMA,
        "version": VERSION,
        "created": _now(),
        "machine": asdict(this_machine()),
        "benchmarks": results,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(f"{options.json}: write docs/performance.md from it with python -m benchmarks.performance {options.json}")
    return 0


def _before(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


if __name__ == "__main__":
    sys.exit(main())
