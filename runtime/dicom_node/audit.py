"""The audit log: which AE sent what UID when, and where documents went. It holds UIDs, so it is apart from the log, and protected."""

from __future__ import annotations

import json
import logging
import os
import threading
from datetime import UTC, datetime
from pathlib import Path

from echovlm_edge.runtime.contracts.errors import NotPossibleHere

_log = logging.getLogger(__name__)


class Audit:
    """Appends one JSON object a line. The file is opened for each line, so that it can be rotated by renaming. Threads may share it.

    Raises:
        NotPossibleHere: the file cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        """Append to `path`; None writes nothing."""
        self._path, self._lock = path, threading.Lock()
        if path:
            try:
                self._append(b"")
            except OSError as error:
                raise NotPossibleHere(f"The audit log {path} cannot be written ({error.strerror}).") from None

    def write(
        self, event: str, ae_title: str, address: str = "", study: str = "", instance: str = "", **more: str
    ) -> None:
        """Append an event; an audit log that cannot be written is an error in the log."""
        if not self._path:
            return
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "event": event,
            "ae_title": ae_title,
            "address": address,
            "study": study,
            "instance": instance,
            **more,
        }
        try:
            self._append(json.dumps({key: value for key, value in line.items() if value}).encode() + b"\n")
        except OSError as error:
            _log.error("the audit log cannot be written: %s", error.strerror)

    def _append(self, line: bytes) -> None:
        assert self._path
        with self._lock:
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(file, line)
            finally:
                os.close(file)
