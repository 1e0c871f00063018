"""Read text files of /proc, /sys and /etc; a missing file is empty."""

from __future__ import annotations

from pathlib import Path


def text(path: Path) -> str:
    """Read a file; returns an empty text if there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def first_line(path: Path) -> str | None:
    """Read the first line, without the NUL that ends device-tree strings; returns None if there is none."""
    lines = text(path).replace("\0", "").splitlines()
    return lines[0].strip() or None if lines else None


def memory_info(root: Path = Path("/")) -> dict[str, int]:
    """Read /proc/meminfo below `root`, in bytes by name; a sandbox may hide it."""
    lines = (line.partition(":") for line in text(root / "proc/meminfo").splitlines())
    return {name: int(value.split()[0]) * 1024 for name, _, value in lines if value.split()[:1]}
