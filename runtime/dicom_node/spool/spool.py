"""The spool: everything that was received and everything that is owed, on disk; the only owner of the node's state.

A folder with `spool.db` (SQLite), `instances/` (a file for each received instance) and `incoming/` (files being received).

Why kill -9 loses nothing:

- An instance's file is written to `incoming/`, synced, and renamed into `instances/`; then a transaction adds its row. C-STORE says
  success only after that transaction is on disk (synchronous=FULL). A file without a row is removed at the next start: nobody was
  told that it had arrived.
- Documents are stored in the same transaction that makes their deliveries `owed` and the study `reported`. So a document's bytes
  and SOP Instance UID are on disk before the first attempt, and every attempt sends those bytes.
- A delivery becomes `delivered` after its destination acknowledged it. Killed in between, the node sends the same object again,
  which the destination knows by its SOP Instance UID.
- Every transition is one transaction that names the state and version that it starts from (`states.NEXT`). A report about a version
  that has been superseded meanwhile changes nothing.

Other processes (`echovlm-dicom status`, `resend`) open the same database.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path

from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.dicom_node.spool.arrivals import Arrivals
from echovlm_edge.runtime.dicom_node.spool.database import Database
from echovlm_edge.runtime.dicom_node.spool.deliveries import Deliveries
from echovlm_edge.runtime.dicom_node.spool.studies import Studies


class Spool:
    """The spool in a folder. Threads may share it.

    Attributes:
        database: what the parts below keep their rows in.
        arrivals: what is received.
        studies: their states and instances.
        deliveries: what is owed.
    """

    def __init__(self, folder: Path) -> None:
        """Open the spool, or create it; the node itself calls `claim` next.

        Raises:
            NotPossibleHere: the folder cannot be used, or was written by a newer version.
        """
        self._folder = folder
        self._claim: int | None = None
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.database = Database(folder)
            self.arrivals = Arrivals(folder, self.database)
            self.arrivals.make_folders()
        except OSError as error:
            raise _unusable(folder, str(error.strerror)) from None
        except sqlite3.Error as error:
            raise _unusable(folder, str(error)) from None
        self.studies = Studies(self.arrivals.instances, self.database)
        self.deliveries = Deliveries(self.database)

    def claim(self) -> None:
        """Take the spool for this process, and remove files of which nobody was told that they had arrived.

        Raises:
            NotPossibleHere: another node has it, or files cannot be written or removed.
        """
        try:
            self._claim = os.open(self._folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
            try:
                fcntl.flock(self._claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise NotPossibleHere(
                    f"Another echovlm-dicom uses the spool {self._folder}: stop it, or give another --spool."
                ) from None
            self.arrivals.clean()
        except OSError as error:
            raise _unusable(self._folder, str(error.strerror)) from None

    def close(self) -> None:
        """Close the database and release the spool."""
        self.database.close()
        if self._claim is not None:
            os.close(self._claim)


def _unusable(folder: Path, why: str) -> NotPossibleHere:
    return NotPossibleHere(f"The spool {folder} cannot be used ({why}): give another --spool.")
