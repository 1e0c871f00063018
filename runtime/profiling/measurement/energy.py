"""Measure energy in joules with the counter that the machine has: a Jetson's rails, a GPU's or the CPU's; else it is unknown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from echovlm_edge.runtime.profiling.schema import Energy
from echovlm_edge.runtime.resources.jetson import open_tegrastats
from echovlm_edge.runtime.resources.nvml import open_nvml

RAPL = Path("/sys/class/powercap")
UNKNOWN = (
    "no RAPL counter can be read (/sys/class/powercap, root's since Linux 5.10), no NVIDIA GPU counts "
    "its energy, and there is no tegrastats"
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


def open_meter(rapl: Path = RAPL) -> Meter | None:
    """Open the best counter of this machine: a Jetson's rails, a GPU's, or the CPU's."""
    if tegrastats := open_tegrastats():
        return tegrastats
    if nvml := open_nvml():
        if nvml.joules():
            return nvml
        nvml.close()
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
        return Energy(unknown=f"{meter.source} reported nothing while the workload ran")
    return Energy(
        meter.source,
        {name: value / requests for name, value in joules.items()},
        {name: value / seconds for name, value in joules.items()},
    )
