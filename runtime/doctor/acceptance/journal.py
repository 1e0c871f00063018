"""The results of steps on disk, a file each, so that an acceptance that was killed continues with the next step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from echovlm_edge.runtime.doctor.acceptance.schema import STEP, StepResult
from echovlm_edge.runtime.resources.atomic_file import write_whole

KEY = "run.json"


@dataclass(frozen=True)
class Journal:
    """The folder of one acceptance's results; see `Journal.open`."""

    folder: Path

    @classmethod
    def open(cls, folder: Path, key: Mapping[str, object]) -> tuple[Journal, str]:
        """Open the journal of an acceptance.

        Args:
            folder: is made, or emptied where it is of another acceptance.
            key: plain values by their names in sentences: what results depend on.

        Returns:
            The journal, and what kept earlier results from being used, such as `the bundle`; empty where nothing did.
        """
        before = _read(folder / KEY)
        changed = [name for name in key if before and before.get(name) != key[name]]
        if before is None or changed:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / KEY, json.dumps(key, indent=1).encode())
        return cls(folder), " and ".join(changed)

    def result(self, number: int, name: str) -> StepResult | None:
        """Return the result of a step that ended; None where it did not."""
        try:
            return STEP.validate_json(self._file(number, name).read_bytes())
        except (OSError, ValidationError):
            return None

    def keep(self, number: int, result: StepResult) -> None:
        """Keep the result of a step; it is there whole, or not at all."""
        write_whole(self._file(number, result.name), STEP.dump_json(result, indent=1))

    def close(self) -> None:
        """Forget everything: the results are in the archive."""
        shutil.rmtree(self.folder)

    def _file(self, number: int, name: str) -> Path:
        return self.folder / f"{number:02}-{name.replace('/', '-')}.json"


def _read(file: Path) -> dict[str, object] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
