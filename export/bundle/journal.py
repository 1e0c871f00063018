"""The journal of a bundle being written: which pieces of weights are on the disk, so that a killed build can be resumed."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import TextIO

JOURNAL = ".journal"


class Journal:
    """Pieces' names and hashes, one per line, after a first line that identifies the build.

    A piece is recorded when its bytes have been handed to the operating system. A resumed build compares the bytes on the
    disk with the hash, because a power failure may have lost them.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        """Read what an earlier build of the same `identity` recorded in `folder`; a journal of another build is ignored."""
        self._path, self._identity = folder / JOURNAL, identity
        self.known = self._read()
        self._file: TextIO | None = None

    @property
    def resumed(self) -> bool:
        """Check whether an earlier build is resumed."""
        return bool(self.known)

    def record(self, piece: str, sha256: str) -> None:
        """Record a piece that has been written."""
        assert self._file is not None, "the journal is not open"
        self._file.write(json.dumps({"piece": piece, "sha256": sha256}) + "\n")
        self._file.flush()

    def __enter__(self) -> Journal:
        """Open for `record`: rewrite the recorded pieces, without a line that a kill cut short."""
        self._file = self._path.open("w", encoding="utf-8")
        self._file.write(json.dumps({"identity": self._identity}) + "\n")
        for piece, sha256 in self.known.items():
            self.record(piece, sha256)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        assert self._file is not None
        self._file.close()

    def remove(self) -> None:
        """Delete the journal, once the bundle is complete."""
        self._path.unlink(missing_ok=True)

    def _read(self) -> dict[str, str]:
        try:
            first, *lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
            if json.loads(first) != {"identity": self._identity}:
                return {}
            entries = [json.loads(line) for line in lines if line.endswith("\n")]
            return {entry["piece"]: entry["sha256"] for entry in entries}
        except (OSError, ValueError, KeyError):
            return {}
