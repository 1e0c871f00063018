"""Read how warm this machine is, how fast its clocks run, and whether they are held back: Linux's sensors, and a GPU's by NVML."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from echovlm_edge.runtime.resources.nvml import Nvml
from echovlm_edge.runtime.resources.system_files import first_line


@dataclass(frozen=True)
class Heat:
    """One reading; None where the machine does not report it.

    Attributes:
        celsius: the hottest sensor's.
        mhz: the GPU's clock, without one the fastest core's.
        throttles: of the CPU's cores since the start, as Intel counts them.
        throttled: whether the GPU's clocks are held back now.
    """

    celsius: float | None = None
    mhz: float | None = None
    throttles: int | None = None
    throttled: bool | None = None


def read_heat(nvml: Nvml | None, root: Path = Path("/")) -> Heat:
    """Read the sensors; `root` is the folder with /sys."""
    devices = root / "sys/devices/system/cpu"
    degrees = [number / 1e3 for number in _numbers((root / "sys/class/thermal").glob("thermal_zone*/temp"))]
    clocks = [number / 1e3 for number in _numbers(devices.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))]
    throttles = _numbers(devices.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))
    gpu = nvml.celsius() if nvml else None
    degrees += [gpu] if gpu is not None else []
    return Heat(
        max(degrees, default=None),
        (nvml.clock() if nvml else None) or max(clocks, default=None),
        sum(throttles) if throttles else None,
        nvml.throttled() if nvml else None,
    )


def _numbers(files: Iterable[Path]) -> list[int]:
    lines = [first_line(file) for file in files]
    return [int(line) for line in lines if line and line.lstrip("-").isdecimal()]
