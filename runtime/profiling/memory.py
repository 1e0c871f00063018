"""Peak memory of this process by kind, looked at while it works."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

STATUS = Path("/proc/self/status")
KINDS = {"VmRSS": "resident", "RssAnon": "own", "RssFile": "mapped_files", "RssShmem": "shared"}
SECONDS = 0.1  # between two looks: a look takes some 0.1 ms


class PeakMemory:
    """Bytes at most while it is entered, by kind: all that is resident; the process's own (activations, KV cache); mapped files
    (the bundle's weights); shared.
    """

    def __init__(self) -> None:
        """Nothing was seen yet."""
        self.peak: dict[str, int] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def _run(self) -> None:
        while not self._done.wait(SECONDS):
            self._look()

    def _look(self) -> None:
        for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name in KINDS:
                kind = KINDS[name]
                self.peak[kind] = max(self.peak.get(kind, 0), int(value.split()[0]) * 1024)
