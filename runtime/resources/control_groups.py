"""The control groups (cgroups) of this process, of both versions, as folders."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from echovlm_edge.runtime.resources.system_files import text


@dataclass(frozen=True)
class ControlGroup:
    """A group: the version of its hierarchy, which decides its files' names, and its folder."""

    version: int
    folder: Path


def control_groups(controller: str, root: Path = Path("/")) -> Iterator[ControlGroup]:
    """Yield this process's group and its parents, innermost first, in each hierarchy that can limit `controller`.

    Args:
        controller: its kernel name, for example cpu or memory.
        root: where /proc and the mounts of control groups lie.
    """
    paths = dict(_paths(controller, root))
    for mount in _mounts(controller, root):
        if path := paths.get(mount.version):
            # Groups outside the mount are the host's: the mount's own group is the outermost that counts.
            inside = path.is_relative_to(mount.group) and ".." not in path.parts
            innermost = mount.point / (path.relative_to(mount.group) if inside else "")
            for folder in (innermost, *innermost.parents):
                if folder.is_relative_to(mount.point):
                    yield ControlGroup(mount.version, folder)


@dataclass(frozen=True)
class _Mount:
    """A mount of control groups: which group it shows, and where it is mounted."""

    version: int
    group: PurePosixPath
    point: Path


def _paths(controller: str, root: Path) -> Iterator[tuple[int, PurePosixPath]]:
    """Read this process's groups and their version: lines `4:cpu,cpuacct:/a/b`, and `0::/a/b` for version 2."""
    for line in text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2) if line.count(":") >= 2 else ("", "", "")
        if number == "0" and not controllers:
            yield 2, PurePosixPath(path)
        elif controller in controllers.split(","):
            yield 1, PurePosixPath(path)


def _mounts(controller: str, root: Path) -> Iterator[_Mount]:
    """Read the mounts of hierarchies with the controller: `33 31 0:30 GROUP POINT rw - cgroup cgroup rw,cpu,cpuacct`."""
    for line in text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        cells, kinds = before.split(), after.split()
        if len(cells) < 5 or len(kinds) < 3:
            continue
        version = 2 if kinds[0] == "cgroup2" else 1
        if version == 2 or (kinds[0] == "cgroup" and controller in kinds[2].split(",")):
            group, point = (PurePosixPath(_unescaped(cell)) for cell in cells[3:5])
            yield _Mount(version, group, root / point.relative_to("/"))


def _unescaped(cell: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), cell)
