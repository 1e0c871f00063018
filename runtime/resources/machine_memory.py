"""Read how much memory this process may use: the machine's memory, and the limits of its control groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from echovlm_edge.runtime.resources.control_groups import control_groups
from echovlm_edge.runtime.resources.system_files import first_line, memory_info, text

# By the version of the group: the files of its limit and its use, and the lines of its memory.stat for the file cache.
GROUP_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")),
    2: ("memory.max", "memory.current", ("active_file", "inactive_file")),
}


@dataclass(frozen=True)
class MachineMemory:
    """Bytes; 0 if the system does not say.

    Attributes:
        total: the machine's memory.
        limit: the lowest limit of this process's control group and its parents; None if there is none.
        available: what can still be allocated within the limit, including the file cache.
    """

    total: int
    limit: int | None
    available: int

    @property
    def most(self) -> int:
        """The bytes that this process could have if nothing else ran."""
        return min(self.total, self.limit or self.total)


def machine_memory(root: Path = Path("/")) -> MachineMemory:
    """Read this machine's memory; `root` is the folder with its /proc and /sys."""
    info = memory_info(root)
    total, limit, available = info.get("MemTotal", 0), None, info.get("MemAvailable", 0)
    for allowed, used in _limits(root):
        if allowed < total:
            limit = min(allowed, limit or allowed)
            available = min(available, max(0, allowed - used))
    return MachineMemory(total, limit, available)


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and use, without the file cache, of each group that contains this process and has a limit."""
    for group in control_groups("memory", root):
        limit, usage, cached = GROUP_FILES[group.version]
        allowed = first_line(group.folder / limit) or ""
        if allowed.isdecimal():  # not `max`
            used = first_line(group.folder / usage) or ""
            cells = (line.partition(" ") for line in text(group.folder / "memory.stat").splitlines())
            files = sum(int(value) for name, _, value in cells if name in cached and value.isdecimal())
            yield int(allowed), max(0, (int(used) if used.isdecimal() else 0) - files)
