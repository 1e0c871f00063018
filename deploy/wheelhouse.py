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
import tempfile
from collections.abc import Sequence
from pathlib import Path

try:
    from packaging.utils import parse_wheel_filename

    from deploy.closure import Target, metadata, needed
    from echovlm_edge.runtime.contracts.command import REPEATED, run_command
    from echovlm_edge.runtime.contracts.errors import NotPossibleHere
except ModuleNotFoundError as missing:
    print(
        f"error: {sys.executable} lacks {missing.name}: in a clone, run make setup, and then .venv/bin/python -m deploy.wheelhouse.",
        file=sys.stderr,
    )
    sys.exit(2)

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ("--constraint", str(ROOT / "constraints.txt"))
PACKAGE = "echovlm-edge"
LOCK = "requirements.lock"
EXTRAS = ("serve", "http", "dicom")
OLDEST_GLIBC, NEWEST_GLIBC = 17, 35  # 2.17 to 2.35: Ubuntu 22.04 and JetPack 6 have 2.35, Debian 12 has 2.36
# What pip says of a package that has no wheel: with its pin, or without one.
NO_WHEEL = re.compile(r"\(constraint\) ([\w.-]+)==\S+|No matching distribution found for ([\w.-]+)")
UNSUPPORTED = "is not a supported wheel on this platform"  # what pip says of a wheel for another target


def collect(wheel: Path, extras: Sequence[str], python: str, output: Path) -> list[Path]:
    """Download the pinned packages that a release's wheel needs for its processor and a Python; returns the wheels.

    A package that is published as pure Python source alone is built into a wheel here, which suits every processor.

    Raises:
        NotPossibleHere: the folder holds something, the wheel has no such extra, or a package has no wheel for the processor.
    """
    if output.exists() and any(output.iterdir()):
        raise NotPossibleHere(f"{output} is not empty: give another --output, or delete it.")
    target = target_of(wheel, python)
    offered = metadata(wheel).get_all("Provides-Extra", [])
    for extra in extras:
        if extra not in offered:
            raise NotPossibleHere(f"{wheel.name} has no extra {extra}: it has {', '.join(sorted(offered))}.")
    wanted = [f"{PACKAGE}[{','.join(extras)}] @ {wheel.resolve().as_uri()}"]
    with tempfile.TemporaryDirectory() as built:
        while True:
            _download(wanted, target, output, Path(built))
            found = sorted(output.glob("*.whl"))
            wheels, missing = needed(found, PACKAGE, extras, target)
            if not missing:
                break
            if set(missing) <= set(wanted):
                raise NotPossibleHere(f"{', '.join(missing)} cannot be had beside the pins of constraints.txt.")
            wanted += missing
    for unneeded in set(found) - set(wheels):
        unneeded.unlink()
    (output / LOCK).write_text(lock(wheels), encoding="utf-8")
    return wheels


def target_of(wheel: Path, python: str) -> Target:
    """Return what a release's wheel is for.

    Raises:
        NotPossibleHere: it is not one.
    """
    processor = re.search(r"-manylinux[\w.]*_(x86_64|aarch64)\.whl$", wheel.name)
    if not wheel.is_file():
        raise NotPossibleHere(f"{wheel} does not exist: make release builds wheels into dist/.")
    if not processor:
        raise NotPossibleHere(
            f"{wheel} is no wheel of a release, whose name has manylinux and x86_64 or aarch64: make release builds them into dist/."
        )
    return Target(processor[1], python)


def _download(wanted: list[str], target: Target, output: Path, built: Path) -> None:
    """Let pip download wheels, and build those of packages that are source alone into `built`."""
    tags = [f"manylinux_2_{minor}_{target.processor}" for minor in range(NEWEST_GLIBC, OLDEST_GLIBC - 1, -1)]
    tags += [f"manylinux2014_{target.processor}", f"manylinux2010_{target.processor}", "any"]
    command = [
        "download",
        "--progress-bar=off",
        "--dest",
        output,
        "--only-binary=:all:",
        *(f"--platform={tag}" for tag in tags),
    ]
    command += ["--python-version", target.python, "--implementation", "cp", "--find-links", built, *CONSTRAINTS]
    command += [f"--abi={abi}" for abi in (f"cp{target.python.replace('.', '')}", "abi3", "none")]
    tried: set[str] = set()
    while (done := _pip(*command, *wanted)).returncode:
        said = done.stdout + done.stderr
        named = NO_WHEEL.search(said)
        name = (named[1] or named[2]) if named else ""
        if not named or name in tried:
            raise NotPossibleHere(_refusal(said, target))
        tried.add(name)
        _pip("wheel", "--quiet", "--no-deps", "--no-binary", name, "--wheel-dir", built, *CONSTRAINTS, name)
        for wheel in built.glob("*.whl"):
            if not wheel.name.endswith("-none-any.whl"):
                wheel.unlink()  # compiled for this computer


def _refusal(said: str, target: Target) -> str:
    """Return a sentence about what pip could not find."""
    _, _, cause = said.partition("The conflict is caused by:\n")
    lines = [line.strip() for line in cause.partition("\n\n")[0].splitlines()]
    lines = lines or [line for line in said.splitlines() if line.startswith("ERROR")][-1:] or ["pip said no word"]
    if UNSUPPORTED in said:
        advice = f"Give a release's wheel for glibc 2.{NEWEST_GLIBC} or older and every Python 3: make release builds it on Debian 12."
    else:
        advice = "Leave out the extra that needs it, or check the network and constraints.txt."
    return (
        f"no set of wheels for {target.processor} and Python {target.python}: {'; '.join(lines).rstrip('.')}. {advice}"
    )


def _pip(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pip", *map(str, words)], capture_output=True, text=True, check=False)


def lock(wheels: Sequence[Path]) -> str:
    """Return the text of a requirements file that pins these wheels by their hashes."""
    return "".join(map(_locked, wheels))


def _locked(wheel: Path) -> str:
    name, version, *_ = parse_wheel_filename(wheel.name)
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"


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
