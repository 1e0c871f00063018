"""What memory this process may have: the machine's, and what its control group leaves of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from echovlm_edge.runtime.profiling import machine

# File names of a group's limit and use, and of the file cache in its memory.stat: version 2, version 1.
GROUP_FILES = {
    "": ("memory.max", "memory.current", ("active_file", "inactive_file")),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")),
}


@dataclass(frozen=True)
class MachineMemory:
    """Bytes; 0 where the system does not say.

    Attributes:
        total: of the machine.
        limit: of this process's control group or one above it, the lowest; None where there is none.
        available: what can still be had, within the limit; the file cache counts, as it gives way.
    """

    total: int
    limit: int | None
    available: int

    @property
    def most(self) -> int:
        """What this process could have if nothing else ran."""
        return min(self.total, self.limit or self.total)


def machine_memory(root: Path = Path("/")) -> MachineMemory:
    """This machine's; `root` is where its /proc and /sys lie."""
    told = machine.memory(root)
    total, limit, available = told.get("MemTotal", 0), None, told.get("MemAvailable", 0)
    for allowed, used in _groups(root):
        if allowed < total:
            limit = min(allowed, limit or allowed)
            available = min(available, max(0, allowed - used))
    return MachineMemory(total, limit, available)


def _groups(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use, without the file cache, of each group that holds this process and has a limit."""
    mounted = root / "sys/fs/cgroup"
    for line in machine.text(root / "proc/self/cgroup").splitlines() or ["0::/"]:
        _, controllers, path = line.split(":", 2)
        kind = "memory" if "memory" in controllers.split(",") else controllers
        if kind not in GROUP_FILES:
            continue
        top = mounted / kind
        # In a container the path may be the host's, which is not there: its own group is the top.
        folder = top / path.lstrip("/")
        for group in (folder, *folder.parents):
            if (group == top or top in group.parents) and (found := _group(group, *GROUP_FILES[kind])):
                yield found


def _group(folder: Path, limit: str, usage: str, cached: tuple[str, ...]) -> tuple[int, int] | None:
    allowed = machine.first_line(folder / limit) or ""
    if not allowed.isdecimal():  # `max`
        return None
    used = machine.first_line(folder / usage) or ""
    cells = (line.partition(" ") for line in machine.text(folder / "memory.stat").splitlines())
    files = sum(int(value) for name, _, value in cells if name in cached and value.isdecimal())
    return int(allowed), max(0, (int(used) if used.isdecimal() else 0) - files)
