"""Measure energy in joules with the counter that the machine has: RAPL, NVML, or a Jetson's tegrastats; else it is unknown."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from echovlm_edge.runtime.profiling.schema import Energy

RAPL = Path("/sys/class/powercap")
TEGRASTATS_MS = 100
_RAIL = re.compile(r"\b(V\w+|POM_\w+) (\d+)(?:mW)?/(\d+)(?:mW)?")
UNKNOWN = (
    "no RAPL counter can be read (/sys/class/powercap, root's since Linux 5.10), there is no NVIDIA GPU with pynvml, "
    "and no tegrastats"
)


class Meter(Protocol):
    """A counter of energy."""

    @property
    def source(self) -> str:
        """The counter's name."""
        ...

    def joules(self) -> dict[str, float]:
        """Return the joules since some moment in the past, by component; call this before and after a measurement."""
        ...

    def close(self) -> None:
        """Stop counting."""
        ...


class Rapl:
    """Intel's and AMD's counters: microjoules of each package, which wrap at a maximum."""

    source = "RAPL"

    def __init__(self, folder: Path) -> None:
        """Find the zones in `folder`.

        Raises:
            OSError: there are no zones, or they cannot be read.
        """
        zones = sorted(folder.glob("*-rapl:[0-9]*"))
        self._zones = {zone: (zone / "name").read_text().strip() for zone in zones if zone.name.count(":") == 1}
        if not self._zones:
            raise FileNotFoundError(folder)
        self._wrap = {zone: int((zone / "max_energy_range_uj").read_text()) for zone in self._zones}
        self._last = {zone: self._read(zone) for zone in self._zones}
        self._total = dict.fromkeys(self._zones, 0)

    def joules(self) -> dict[str, float]:
        """Return the joules by package; corrects for one wrap of a counter since the last call (minutes, at a server's power)."""
        for zone in self._zones:
            now = self._read(zone)
            self._total[zone] += (now - self._last[zone]) % (self._wrap[zone] + 1)
            self._last[zone] = now
        return {name: self._total[zone] / 1e6 for zone, name in self._zones.items()}

    def close(self) -> None:
        """Do nothing, as nothing runs."""

    @staticmethod
    def _read(zone: Path) -> int:
        return int((zone / "energy_uj").read_text())


class Nvml:
    """NVIDIA's GPUs: millijoules since the driver was loaded (Volta and later)."""

    source = "NVML"

    def __init__(self, nvml: Any) -> None:
        """`nvml` is the module pynvml; raises its own errors where there is no GPU."""
        nvml.nvmlInit()
        self._nvml = nvml
        self._gpus = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        if not self._gpus:
            raise LookupError("no GPU")
        self.joules()

    def joules(self) -> dict[str, float]:
        """See `Meter`."""
        total = self._nvml.nvmlDeviceGetTotalEnergyConsumption
        return {f"GPU {index}": total(gpu) / 1e3 for index, gpu in enumerate(self._gpus)}

    def close(self) -> None:
        """Release the driver."""
        self._nvml.nvmlShutdown()


class Tegrastats:
    """A Jetson's rails: milliwatts ten times a second, added up."""

    source = "tegrastats"

    def __init__(self, program: str) -> None:
        """Start it."""
        self._process = subprocess.Popen(
            [program, "--interval", str(TEGRASTATS_MS)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._joules: dict[str, float] = {}
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, name="tegrastats", daemon=True)
        self._thread.start()

    def joules(self) -> dict[str, float]:
        """See `Meter`."""
        with self._lock:
            return dict(self._joules)

    def close(self) -> None:
        """Stop it."""
        self._process.terminate()
        self._process.wait()
        self._thread.join()

    def _read(self) -> None:
        assert self._process.stdout
        before = time.monotonic()
        for line in self._process.stdout:
            now = time.monotonic()
            with self._lock:
                for rail, milliwatts in rails(line).items():
                    self._joules[rail] = self._joules.get(rail, 0.0) + milliwatts / 1e3 * (now - before)
            before = now


def rails(line: str) -> dict[str, int]:
    """Parse a line of tegrastats to milliwatts by rail: `VDD_GPU_SOC 2400mW/2400mW` is now and on average."""
    return {name: int(now) for name, now, _ in _RAIL.findall(line)}


def open_meter(rapl: Path = RAPL) -> Meter | None:
    """Open the best counter of this machine: a Jetson's rails, a GPU's, or the CPU's."""
    if program := shutil.which("tegrastats"):
        return Tegrastats(program)
    try:
        import pynvml

        return Nvml(pynvml)
    except Exception:  # no module, no driver, no GPU that counts
        pass
    try:
        return Rapl(rapl)
    except (OSError, ValueError):
        return None


def energy_of(meter: Meter | None, before: Mapping[str, float], requests: int, seconds: float) -> Energy:
    """Compute the energy of `requests` requests that ran for `seconds` since the meter showed `before`."""
    if meter is None:
        return Energy(unknown=UNKNOWN)
    joules = {name: now - before.get(name, 0.0) for name, now in meter.joules().items()}
    if not joules:
        return Energy(unknown=f"{meter.source} said nothing while the workload ran")
    return Energy(
        meter.source,
        {name: value / requests for name, value in joules.items()},
        {name: value / seconds for name, value in joules.items()},
    )
