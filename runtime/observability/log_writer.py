"""A log handler that never blocks its caller, as the reader of stderr may be slow or hang."""

from __future__ import annotations

import logging
import queue
import threading
from contextlib import suppress
from typing import TextIO

LINES = 10_000  # that may wait to be written; further ones are dropped and counted
FLUSH_SECONDS = 1.0


class LogWriter(logging.Handler):
    """Writes lines in a thread of its own."""

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream`."""
        super().__init__()
        self._stream, self._dropped = stream, 0
        self._lines: queue.Queue[str] = queue.Queue(LINES)
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line to be written; returns at once."""
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self._dropped += 1

    def flush(self) -> None:
        """Wait until all queued lines are written, for a second at most."""
        with self._lines.all_tasks_done:
            self._lines.all_tasks_done.wait_for(lambda: not self._lines.unfinished_tasks, FLUSH_SECONDS)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            dropped, self._dropped = self._dropped, 0
            note = f"{dropped} lines of the log were dropped before the next one\n" if dropped else ""
            with suppress(OSError, ValueError):  # the reader is gone
                self._stream.write(f"{note}{line}\n")
                self._stream.flush()
            self._lines.task_done()
