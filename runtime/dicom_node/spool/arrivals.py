"""What is received: a file for each instance, on disk before its row, and its row on disk before its sender is told."""

from __future__ import annotations

import enum
import json
import secrets
import shutil
import sqlite3
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from echovlm_edge.runtime.dicom_node.spool.database import Database
from echovlm_edge.runtime.dicom_node.spool.rows import Arrival
from echovlm_edge.runtime.dicom_node.spool.states import StudyState
from echovlm_edge.runtime.resources.durable import sync


class Stored(enum.StrEnum):
    """What became of an instance that came."""

    NEW = "stored"
    AGAIN = "again"  # the spool has it already
    DIFFERENT = "different"  # it has one with the same UID and other bytes, which it keeps


@dataclass(eq=False)
class _Waiting:
    """An instance whose file is on disk and whose row is not yet."""

    arrival: Arrival
    size: int
    stored: Stored | None = None
    fault: BaseException | None = None


class Arrivals:
    """The instances of a spool as they come. Threads may share it.

    Attributes:
        incoming: the folder of files that are being received.
        instances: the folder of files that have rows.
    """

    def __init__(self, folder: Path, database: Database) -> None:
        """Keep instances in two folders of `folder`, and their rows in `database`."""
        self._folder, self._database = folder, database
        self.incoming, self.instances = folder / "incoming", folder / "instances"
        self._gathering, self._waiting = threading.Lock(), list[_Waiting]()

    def make_folders(self) -> None:
        """Create the folders where they are missing."""
        for path in (self.incoming, self.instances):
            path.mkdir(mode=0o700, exist_ok=True)

    def clean(self) -> None:
        """Remove the files of which nobody was told that they had arrived."""
        known = {row["file"] for row in self._database.rows("SELECT file FROM instances WHERE file != ''")}
        for path in (*self.incoming.iterdir(), *(path for path in self.instances.iterdir() if path.name not in known)):
            path.unlink()

    def new_file(self) -> Path:
        """Return the path of a file to receive into."""
        return self.incoming / f"{secrets.token_hex(12)}.dcm"

    def store(self, arrival: Arrival) -> Stored:
        """Add an instance whose file is written and synced; removes the file if the spool has the instance already.

        A study that was complete becomes `receiving` again, with the next version, unless the instance is set aside.

        Instances that come while a transaction is written to disk share the next one, so that on a slow disk each of many carts waits
        for two transactions and not for all.

        Raises:
            OSError, sqlite3.Error: the disk is full or fails; nothing was added.
        """
        one, target = _Waiting(arrival, arrival.path.stat().st_size), self.instances / arrival.path.name
        arrival.path.replace(target)
        try:
            sync(self.instances)
            with self._gathering:
                self._waiting.append(one)
            with self._database.lock:
                if one.stored is None and one.fault is None:
                    self._add_waiting()
            if one.fault:
                raise one.fault
        except BaseException:
            with suppress(OSError):
                target.unlink()
            raise
        assert one.stored
        if one.stored is not Stored.NEW:
            target.unlink()
        return one.stored

    def _add_waiting(self) -> None:
        with self._gathering:
            together, self._waiting = self._waiting, []
        try:
            with self._database.transaction() as sql:
                stored = [self._add(sql, one) for one in together]
        except BaseException as error:
            for one in together:
                one.fault = error
            return
        for one, outcome in zip(together, stored, strict=True):
            one.stored = outcome

    def _add(self, sql: sqlite3.Connection, one: _Waiting) -> Stored:
        arrival, now = one.arrival, time.time()
        known = sql.execute(
            "SELECT digest FROM instances JOIN studies ON studies.id = study WHERE uid = ? AND sop_instance = ? AND file != ''",
            (arrival.study_uid, arrival.sop_instance),
        ).fetchone()
        if known:
            return Stored.AGAIN if known["digest"] == arrival.digest else Stored.DIFFERENT
        study = self._study_for(sql, arrival, now)
        sql.execute("DELETE FROM instances WHERE study = ? AND sop_instance = ?", (study, arrival.sop_instance))
        sql.execute(
            "INSERT INTO instances (study, sop_instance, sop_class, file, bytes, digest, ae_title, received, kind, header)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(study, arrival.sop_instance, arrival.sop_class, arrival.path.name, one.size, arrival.digest),
                *(arrival.ae_title, now, arrival.kind, json.dumps(arrival.header)),
            ),
        )
        return Stored.NEW

    def _study_for(self, sql: sqlite3.Connection, arrival: Arrival, now: float) -> int:
        row = sql.execute("SELECT id, state FROM studies WHERE uid = ?", (arrival.study_uid,)).fetchone()
        if row is None:
            return int(
                sql.execute(
                    "INSERT INTO studies (uid, state, version, ae_title, begun, changed) VALUES (?, ?, 1, ?, ?, ?)",
                    (arrival.study_uid, StudyState.RECEIVING, arrival.ae_title, now, now),
                ).lastrowid
                or 0
            )
        if row["state"] != StudyState.RECEIVING and arrival.kind != "other":
            sql.execute(
                "UPDATE studies SET state = ?, version = version + 1, completed_by = '', reason = '', changed = ? WHERE id = ?",
                (StudyState.RECEIVING, now, row["id"]),
            )
            # Cines fill what stills leave, so what was decided about them is decided again.
            sql.execute("UPDATE instances SET choice = NULL WHERE study = ? AND kind = 'cine'", (row["id"],))
        return int(row["id"])

    def used_bytes(self) -> int:
        """Return the bytes of all received instances, and of documents."""
        return int(
            self._database.rows(
                "SELECT (SELECT coalesce(sum(bytes), 0) FROM instances WHERE file != '') +"
                " (SELECT coalesce(sum(length(content)), 0) FROM documents) AS used"
            )[0]["used"]
        )

    def free_bytes(self) -> int:
        """Return the free space of the disk."""
        return shutil.disk_usage(self._folder).free
