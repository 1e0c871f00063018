"""Collect what an installation without a network needs: a folder with every wheel, and a lock file with each one's hash.

python -m deploy.wheelhouse dist/echovlm_edge-0.1.0-py3-none-manylinux_2_34_x86_64.whl --extra serve --extra http --output build/wheelhouse

There, in any Python of --python:

pip install --no-index --find-links wheelhouse --require-hashes -r wheelhouse/requirements.lock
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
from pathlib import Path

from echovlm_edge.runtime.contracts.command import REPEATED, run_command
from echovlm_edge.runtime.contracts.errors import NotPossibleHere

ROOT = Path(__file__).parents[1]
LOCK = "requirements.lock"
EXTRAS = ("serve", "http", "dicom")
OLDEST_GLIBC, NEWEST_GLIBC = 17, 39  # 2.17 to 2.39: Debian 12 has 2.36, Ubuntu 24.04 and JetPack 7 have 2.39


def collect(wheel: Path, extras: list[str], python: str, output: Path) -> list[Path]:
    """Download the pinned packages that a release's wheel needs for its processor; returns the wheels.

    Raises:
        NotPossibleHere: the folder holds something, or a package has no wheel for the processor.
    """
    if output.exists() and any(output.iterdir()):
        raise NotPossibleHere(f"{output} is not empty: give another --output, or delete it.")
    processor = re.search(r"(x86_64|aarch64)\.whl$", wheel.name)
    if not wheel.is_file() or not processor:
        raise NotPossibleHere(f"{wheel} is no wheel of a release: build one with make release.")
    platforms = [
        f"--platform=manylinux_2_{minor}_{processor[1]}" for minor in range(NEWEST_GLIBC, OLDEST_GLIBC - 1, -1)
    ]
    platforms += [
        f"--platform=manylinux2014_{processor[1]}",
        f"--platform=manylinux2010_{processor[1]}",
        "--platform=any",
    ]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(output), "--only-binary=:all:"]
    command += [
        *platforms,
        "--python-version",
        python,
        "--implementation",
        "cp",
        "--abi",
        f"cp{python.replace('.', '')}",
    ]
    command += ["--abi", "abi3", "--abi", "none", "--constraint", str(ROOT / "constraints.txt")]
    wanted = f"echovlm-edge[{','.join(extras)}] @ {wheel.resolve().as_uri()}"
    done = subprocess.run([*command, wanted], capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no word"]
        raise NotPossibleHere(
            f"pip cannot collect the packages ({errors[-1]}): check the network, and constraints.txt."
        )
    wheels = sorted(output.glob("*.whl"))
    (output / LOCK).write_text("".join(map(locked, wheels)), encoding="utf-8")
    return wheels


def locked(wheel: Path) -> str:
    name, version = wheel.name.split("-")[:2]
    return f"{name.replace('_', '-')}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.wheelhouse", description="Collect what an installation without a network needs."
    )
    parser.add_argument(
        "wheel", type=Path, metavar="WHEEL", help="of a release, for the processor that it is installed on"
    )
    parser.add_argument(
        "--extra",
        **REPEATED,
        default=[],
        metavar="NAME",
        help=f"an extra; again for each further one (default {' '.join(EXTRAS)})",
    )
    parser.add_argument("--python", default="3.11", metavar="X.Y", help="Python of the target (default 3.11)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="an empty folder")
    options = parser.parse_args(arguments)

    def command() -> int:
        wheels = collect(options.wheel, options.extra or list(EXTRAS), options.python, options.output)
        size = sum(wheel.stat().st_size for wheel in wheels) / 1e6
        print(f"{len(wheels)} wheels, {size:.0f} MB, and {LOCK} in {options.output}")
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
