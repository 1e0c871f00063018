"""Make the root of a minimal Debian: its essential packages, Python, and what a release's page says to install."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from echovlm_edge.runtime.contracts.errors import NotPossibleHere

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
PREPARE = "apt-get install --yes python3-venv libstdc++6"  # on the target, as docs/release.md has it


def make_root(root: Path, suite: str, processor: str, more: tuple[str, ...] = ()) -> str:
    """Unpack Debian's packages into a new folder, without running any of their programs; returns its Python's version, as `3.11`.

    Args:
        root: the folder.
        suite: the release of Debian, as `bookworm`.
        processor: `x86_64` or `aarch64`.
        more: further packages.

    Raises:
        NotPossibleHere: mmdebstrap failed, or this suite's Python is not one that the package supports.
    """
    root.mkdir(parents=True)
    packages = [f"--include={package}" for package in ("?essential", *PREPARE.split()[3:], *more)]
    archive = root.with_suffix(".tar")
    command = ["mmdebstrap", "--variant=extract", "--format=tar", f"--architectures={ARCHITECTURES[processor]}"]
    try:
        _run([*command, *packages, suite, str(archive)])
        # As whoever runs this, and without the devices that only root can make.
        _run(["tar", "-xf", str(archive), "-C", str(root), "--no-same-owner", "--exclude=./dev/*"])
    finally:
        archive.unlink(missing_ok=True)
    # The one thing that a package's own script would have made and that pip needs, from Debian 13 on also without a network.
    certificates = sorted((root / "usr" / "share" / "ca-certificates").rglob("*.crt"))
    bundle = root / "etc" / "ssl" / "certs" / "ca-certificates.crt"
    bundle.write_bytes(b"".join(file.read_bytes() for file in certificates))
    versions = [re.fullmatch(r"python(3\.\d+)", file.name) for file in (root / "usr" / "bin").iterdir()]
    (version,) = (found[1] for found in versions if found)
    if int(version.partition(".")[2]) < 11:
        raise NotPossibleHere(f"Python {version} of {suite} is older than 3.11: give a newer --suite.")
    return version


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-10:])
        raise NotPossibleHere(f"{command[0]} failed:\n{said}")
