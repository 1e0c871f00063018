"""Measure peak memory by kind, polled while the process works: its own, and the GPU's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from echovlm_edge.runtime.resources.nvml import open_nvml

STATUS = Path("/proc/self/status")
KINDS = {"VmRSS": "resident", "RssAnon": "own", "RssFile": "mapped_files", "RssShmem": "shared"}
SECONDS = 0.1  # between two polls, which take some 0.1 ms each


class PeakMemory:
    """The most bytes while it is entered, by kind: all that is resident; the process's own (activations, KV cache); mapped files
    (the bundle's weights); shared; the GPU's, whoever uses it.
    """

    def __init__(self, gpu: Callable[[], int] | None = None) -> None:
        """Take `gpu`, which returns the bytes in use on the GPU where there is one, as `gpu_memory` does."""
        self._gpu = gpu
        self.peak: dict[str, int] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._poll()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self._poll()

    def _run(self) -> None:
        while not self._done.wait(SECONDS):
            self._poll()

    def _poll(self) -> None:
        if self._gpu:
            self.peak["gpu"] = max(self.peak.get("gpu", 0), self._gpu())
        for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name in KINDS:
                kind = KINDS[name]
                self.peak[kind] = max(self.peak.get(kind, 0), int(value.split()[0]) * 1024)


def gpu_memory() -> Callable[[], int] | None:
    """Return a function that reads the bytes in use on the first NVIDIA GPU; None where its memory is not reported."""
    nvml = open_nvml()
    if nvml is None or nvml.used_memory() is None:
        return None
    return lambda: nvml.used_memory() or 0
