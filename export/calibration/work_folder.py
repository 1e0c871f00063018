"""The folder of a calibration: hidden, next to the bundle, kept when the build is killed and removed when it ends."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from echovlm_edge.export.bundle.bundle_folder import locked
from echovlm_edge.export.bundle.journal import Journal


@contextlib.contextmanager
def work_folder(output: Path, identity: str) -> Iterator[tuple[Path, Journal]]:
    """Make the folder for the bundle `output`, with its open journal; a calibration of the same `identity` is resumed.

    It stays when the process is killed or interrupted.

    Raises:
        NotPossibleHere: another process is building `output`.
    """
    output = output.absolute()
    folder = output.with_name(f".{output.name}.calibration")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, output):
        journal = Journal(folder, identity)
        if not journal.resumed:
            for file in folder.iterdir():
                file.unlink()
        try:
            with journal:
                yield folder, journal
        except KeyboardInterrupt:
            raise
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
