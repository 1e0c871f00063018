"""The journal of a run: each answer on a line of its own, on the disk before the next one counts, so that a killed run resumes."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.evaluation.schema import Settings

FILE = "answers.jsonl"
SCHEMA, VERSION = "echovlm-evaluate answers", 1


@dataclass(frozen=True)
class Answer:
    """What the model answered a row: its text, why it ended, and how many tokens were written."""

    text: str = field(repr=False)
    finish: str
    tokens: int


class Journal:
    """The file of answers; one process at a time has it open. Its first line holds the settings that all answers share."""

    def __init__(self, folder: Path, settings: Settings, restart: bool = False) -> None:
        """Open the journal of a folder, or begin one.

        Args:
            folder: of the run.
            settings: of this run; those of a journal that is there must be the same.
            restart: drop the answers that are there.

        Raises:
            InvalidInput: the answers that are there were given with other settings, or the file is damaged.
            NotPossibleHere: the file cannot be written, or another process has it open.
        """
        self.path = folder / FILE
        self.answers: dict[str, Answer] = {}  # by the rows' keys
        header = {"schema": SCHEMA, "version": VERSION, "settings": asdict(settings)}
        try:
            self._file = self.path.open("a+b")
        except OSError as error:
            raise NotPossibleHere(f"The journal {self.path} cannot be written ({error.strerror}).") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise NotPossibleHere(
                f"Another echovlm-evaluate writes to {folder}: wait for it, or give another --output."
            ) from None
        try:
            if restart:
                self._file.truncate(0)
            lines = self._whole_lines()
            if lines:
                self._read(lines, header)
            else:
                self._append(header)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        """Return the journal."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._file.close()

    def add(self, key: str, answer: Answer) -> None:
        """Keep an answer; it is on the disk when this returns.

        Raises:
            NotPossibleHere: it cannot be written.
        """
        self._append({"key": key, **asdict(answer)})
        self.answers[key] = answer

    def _append(self, content: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(content, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise NotPossibleHere(f"The journal {self.path} cannot be written ({error.strerror}).") from None

    def _whole_lines(self) -> list[bytes]:
        """Read the lines; what a kill left of the last one is cut off."""
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self._file.truncate(len(whole))
        return whole.splitlines()

    def _read(self, lines: list[bytes], header: Mapping[str, Any]) -> None:
        try:
            first, *rest = (json.loads(line) for line in lines)
            if (first["schema"], first["version"]) != (SCHEMA, VERSION):
                raise ValueError
            self.answers |= {str(entry.pop("key")): Answer(**entry) for entry in rest}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InvalidInput(
                f"{self.path} is damaged, or of another version: give another --output, or --restart to ask all rows again."
            ) from None
        changed = _changes(first["settings"], header["settings"])
        if changed:
            raise InvalidInput(
                f"{self.path} holds answers of other settings ({', '.join(changed)}): give another --output, or --restart to ask "
                "all rows again."
            )


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Name each setting that differs: `max_new_tokens 512, now 64`."""
    found = []
    for name in {**before, **now}:
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _changes(old, new, f"{name}'s ")
        elif old != new:
            found.append(f"{prefix}{name} {old}, now {new}")
    return found
