"""How many processors this process may use: by its affinity, and by the quotas of the control groups that it is in."""

from __future__ import annotations

import math
import os
from pathlib import Path

from echovlm_edge.runtime.resources.control_groups import ControlGroup, control_groups
from echovlm_edge.runtime.resources.system_files import first_line


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
    quotas = (_quota(group) for group in control_groups("cpu", root))
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(group: ControlGroup) -> float | None:
    """Version 2 has `150000 100000` for 1.5 and `max 100000` for no limit; version 1 a file each, and -1 for none."""
    if group.version == 2:
        return _ratio(*(first_line(group.folder / "cpu.max") or "").split()[:2])
    return _ratio(*(first_line(group.folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")))


def _ratio(quota: str = "", period: str = "") -> float | None:
    if not (quota.isdecimal() and period.isdecimal() and int(period)):
        return None
    return int(quota) / int(period)
