"""Install each peer into an environment of its own under build/peers, from the requirements beside this file."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.peer import CannotTakePart

BUILD = Path("build/peers")


@dataclass(frozen=True)
class Environment:
    """A virtual environment.

    Attributes:
        name: of its folder, and of its file of requirements.
        variables: set while packages are compiled.
        unwanted: packages that come along and are removed again.
    """

    name: str
    variables: Mapping[str, str]
    unwanted: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Return where it is."""
        return BUILD.absolute() / self.name

    @property
    def python(self) -> str:
        """Return its interpreter."""
        return str(self.folder / "bin" / "python")

    def script(self, name: str) -> str:
        """Return the path of one of its commands."""
        return str(self.folder / "bin" / name)

    @property
    def requirements(self) -> Path:
        """Return its file of pinned packages."""
        return Path(__file__).with_name(f"{self.name}.txt")

    def pinned(self, package: str) -> str:
        """Return a package's requirement, as `name==version`."""
        lines = self.requirements.read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith(f"{package}=="))

    def make(self) -> None:
        """Install what is pinned, unless that is done.

        Raises:
            CannotTakePart: a package is not to be had for this platform, or does not compile.
        """
        wanted = hashlib.sha256(self.requirements.read_bytes()).hexdigest()
        stamp = self.folder / "installed"
        if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
            return
        venv.create(self.folder, with_pip=True)
        pip = (self.python, "-m", "pip", "install", "--quiet", "--no-compile", "--requirement", str(self.requirements))
        run(f"installing {self.name} (minutes)", pip, self.folder / "install.log", self.variables)
        for package in self.unwanted:
            subprocess.run((self.python, "-m", "pip", "uninstall", "--quiet", "--yes", package), check=True)
        stamp.write_text(wanted, encoding="utf-8")

    def source(self, package: str) -> Path:
        """Return a pinned package's unpacked source archive, fetched once.

        Raises:
            CannotTakePart: there is none.
        """
        name = self.pinned(package).replace("==", "-").replace("llama-cpp-python", "llama_cpp_python")
        folder = BUILD.absolute() / "sources"
        if not (folder / name).is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            pip = (self.python, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", package)
            command = (*pip, "--dest", str(folder), self.pinned(package))
            run(f"fetching the source of {package}", command, folder / "fetch.log", self.variables)
            unpacking = folder / f"{name}.partial"
            with tarfile.open(folder / f"{name}.tar.gz") as archive:
                archive.extractall(unpacking, filter="data")
            (unpacking / name).rename(folder / name)
            unpacking.rmdir()
        return folder / name


def run(what: str, command: tuple[str, ...], log: Path, variables: Mapping[str, str] | None = None) -> None:
    """Run a long step, said before it begins, its output in a file.

    Raises:
        CannotTakePart: it failed; the text ends with the last line of the output.
    """
    print(f"{what} …", file=sys.stderr, flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as lines:
        done = subprocess.run(command, stdout=lines, stderr=lines, env={**os.environ, **(variables or {})}, check=False)
    if done.returncode:
        last = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]
        raise CannotTakePart(f"{what} failed, {log} has the output: {last}")
