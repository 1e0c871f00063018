"""Count the processors that this process may use, by its affinity mask and the quotas of its control groups."""

from __future__ import annotations

import math
import os
from pathlib import Path

from echovlm_edge.runtime.resources.control_groups import ControlGroup, control_groups
from echovlm_edge.runtime.resources.system_files import first_line


def usable_processors(root: Path = Path("/")) -> int:
    """Return how many threads can compute at once: one per processor of the affinity, up to the quota rounded up.

    More threads than the quota would use it up together, and then all stall until the next period.
    """
    allowed, quota = len(os.sched_getaffinity(0)), processor_quota(root)
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def processor_quota(root: Path = Path("/")) -> float | None:
    """Return the tightest CPU limit of this process's groups, in processors; None if there is none.

    Args:
        root: where /proc and the mounts of control groups lie.
    """
    quotas = (_quota(group) for group in control_groups("cpu", root))
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(group: ControlGroup) -> float | None:
    """Read a group's limit. Version 2 has `150000 100000` for 1.5, or `max 100000`; version 1 has two files, and -1 for none."""
    if group.version == 2:
        return _ratio(*(first_line(group.folder / "cpu.max") or "").split()[:2])
    return _ratio(*(first_line(group.folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")))


def _ratio(quota: str = "", period: str = "") -> float | None:
    if not (quota.isdecimal() and period.isdecimal() and int(period)):
        return None
    return int(quota) / int(period)
