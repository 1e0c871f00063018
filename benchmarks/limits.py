"""Measure this computer's limits during a benchmark, in between the measurements that are compared with them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from echovlm_edge.plugins.dual_path_moe.library import library_path
from echovlm_edge.plugins.dual_path_moe.native import NativeLibrary
from echovlm_edge.runtime.profiling.measurement.machine import cpu_name

SPIN = 0.05  # seconds after which a session's idle threads no longer spin


@dataclass(frozen=True)
class Machine:
    """This computer's limits, measured in the same run: the medians."""

    read_gbps: float
    int8_gops: float
    threads: int
    cpu: str


class Limits:
    """Measures read bandwidth over the memory-mapped weights of the benchmark, and the int8 peak, between its measurements.

    Measuring them only once at the start would not do: on a shared machine both change within minutes.
    """

    def __init__(self, threads: int, weights: Path) -> None:
        self._native = NativeLibrary(installed_library())
        self._threads = threads
        self._data = np.memmap(weights, np.uint8, "r")
        self._native.read_bandwidth(self._data, threads)  # maps the pages
        self._reads: list[float] = []
        self._peaks: list[float] = []

    def read(self, times: int = 1) -> None:
        """Measure this many times more."""
        time.sleep(SPIN)
        for _ in range(times):
            self._reads.append(self._native.read_bandwidth(self._data, self._threads))
            self._peaks.append(self._native.int8_peak(self._threads))

    def machine(self) -> Machine:
        """Return the medians of the measurements."""
        cpu = f"{cpu_name()}, {self._native.kernel}"
        return Machine(median(self._reads) / 1e9, median(self._peaks) / 1e9, self._threads, cpu)


def installed_library() -> Path:
    """Load the operator library, which every benchmark needs."""
    path = library_path()
    if path is None:
        raise SystemExit("The native library is not installed: install a C++ compiler and reinstall the package.")
    return path
