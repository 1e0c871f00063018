"""Measure the most that this machine reads and multiplies, by this project's own loops in the same run."""

from __future__ import annotations

import numpy as np

from echovlm_edge.plugins.dual_path_moe.library import library_path
from echovlm_edge.plugins.dual_path_moe.native import NativeLibrary
from echovlm_edge.runtime.profiling.schema import Ceilings

COLD_BYTES = 256 << 20  # many times any cache


def measured_ceilings(threads: int, runs: int = 5) -> Ceilings | None:
    """Return the best of `runs` runs on `threads` threads; None where the operators were not built."""
    path = library_path()
    if path is None:
        return None
    native = NativeLibrary(path)
    data = np.ones(COLD_BYTES, np.uint8)  # written, so that its pages are there
    return Ceilings(native.read_bandwidth(data, threads, runs) / 1e9, native.int8_peak(threads, runs) / 1e9, threads)
