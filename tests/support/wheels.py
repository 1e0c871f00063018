"""Wheels of no code, with the requirements that a test wants."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile


def tiny_wheel(folder: Path, name: str = "nothing_at_all", tag: str = "py3-none-any", *headers: str) -> Path:
    """Write a package of no code, version 1.0, with further lines of metadata."""
    wheel = folder / f"{name}-1.0-{tag}.whl"
    lines = ["Metadata-Version: 2.1", f"Name: {name.replace('_', '-')}", "Version: 1.0", *headers]
    files = {
        f"{name}.py": "",
        f"{name}-1.0.dist-info/METADATA": "\n".join(lines) + "\n",
        f"{name}-1.0.dist-info/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    with ZipFile(wheel, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "".join(f"{file},,\n" for file in files))
    return wheel
