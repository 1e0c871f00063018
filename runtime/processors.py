"""How many processors this process may use: by its affinity, and by the quotas of the control groups that it is in."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


def usable_processors(root: Path = Path("/")) -> int:
    """How many threads can compute at once: a processor of the affinity each, as far as the quota lasts, rounded up.

    Threads beyond the quota use it up together and then all stand still until the next period.
    """
    allowed, quota = len(os.sched_getaffinity(0)), processor_quota(root)
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def processor_quota(root: Path = Path("/")) -> float | None:
    """Processors' worth of time by the tightest limit of this process's groups; None where there is none.

    Args:
        root: where /proc and the mounts of control groups lie.
    """
    return min(_quotas(root), default=None)


@dataclass(frozen=True)
class _Mount:
    """A mount of control groups: which group's folder it shows, and where."""

    version: int
    group: PurePosixPath
    point: Path


def _quotas(root: Path) -> Iterator[float]:
    groups = dict(_groups(root))
    for mount in _mounts(root):
        if group := groups.get(mount.version):
            # Outside of what the mount shows are groups of the host: the mount's own is the outermost that counts.
            inside = group.is_relative_to(mount.group) and ".." not in group.parts
            folder = mount.point / (group.relative_to(mount.group) if inside else "")
            for limited in (folder, *folder.parents):
                if limited.is_relative_to(mount.point):
                    quota = _quota_v2(limited) if mount.version == 2 else _quota_v1(limited)
                    if quota is not None:
                        yield quota


def _groups(root: Path) -> Iterator[tuple[int, PurePosixPath]]:
    """This process's groups by the version of their hierarchy: lines `4:cpu,cpuacct:/a/b`, and `0::/a/b` of version 2."""
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = line.split(":", 2) if line.count(":") >= 2 else ("", "", "")
        if number == "0" and not controllers:
            yield 2, PurePosixPath(path)
        elif "cpu" in controllers.split(","):
            yield 1, PurePosixPath(path)


def _mounts(root: Path) -> Iterator[_Mount]:
    """Mounts of hierarchies that limit processors: `33 31 0:30 GROUP POINT rw - cgroup cgroup rw,cpu,cpuacct`."""
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        cells, kinds = before.split(), after.split()
        if len(cells) < 5 or len(kinds) < 3:
            continue
        version = 2 if kinds[0] == "cgroup2" else 1
        if version == 2 or (kinds[0] == "cgroup" and "cpu" in kinds[2].split(",")):
            group, point = (PurePosixPath(_unescaped(cell)) for cell in cells[3:5])
            yield _Mount(version, group, root / point.relative_to("/"))


def _quota_v2(folder: Path) -> float | None:
    """`150000 100000` is 1.5; `max 100000` is no limit."""
    return _ratio(*(" ".join(_lines(folder / "cpu.max")).split() or [""])[:2])


def _quota_v1(folder: Path) -> float | None:
    return _ratio(*("".join(_lines(folder / f"cpu.cfs_{name}_us")).strip() for name in ("quota", "period")))


def _ratio(quota: str = "", period: str = "") -> float | None:
    if not (quota.isdecimal() and period.isdecimal() and int(period)):
        return None  # max, -1, or no such file
    return int(quota) / int(period)


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _lines(file: Path) -> list[str]:
    with suppress(OSError):
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    return []
