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

Threads share one connection behind a lock. Other processes (`echovlm-dicom status`, `resend`) open the same database.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.dicom_node.spool_rows import (
    SCHEMA,
    TABLES,
    Arrival,
    Document,
    Instance,
    Owed,
    Study,
    document_of,
    study_of,
)
from echovlm_edge.runtime.dicom_node.states import DeliveryState, StudyState, before


class Spool:
    """The spool in a folder. Threads may share it."""

    def __init__(self, folder: Path) -> None:
        """Open the spool, or create it; the node itself calls `claim` next.

        Raises:
            NotPossibleHere: the folder cannot be used, or was written by a newer version.
        """
        self.folder, self.incoming, self.instances = folder, folder / "incoming", folder / "instances"
        self._lock = threading.RLock()
        self._claim: int | None = None
        self.changed = threading.Condition()
        try:
            for path in (folder, self.incoming, self.instances):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                folder / "spool.db", check_same_thread=False, isolation_level=None, timeout=30
            )
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._create()
        except OSError as error:
            raise NotPossibleHere(
                f"The spool {folder} cannot be used ({error.strerror}): give another --spool."
            ) from None
        except sqlite3.Error as error:
            raise NotPossibleHere(f"The spool {folder} cannot be used ({error}): give another --spool.") from None

    def _create(self) -> None:
        with self.transaction() as sql:
            version = sql.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA:
                raise NotPossibleHere(
                    f"The spool {self.folder} was written by a newer version: upgrade this one, or give another --spool."
                )
            if version == 0:
                for statement in filter(str.strip, TABLES.split(";")):
                    sql.execute(statement)
                sql.execute(f"PRAGMA user_version = {SCHEMA}")

    def claim(self) -> None:
        """Take the spool for this process, and remove files of which nobody was told that they had arrived.

        Raises:
            NotPossibleHere: another node has it.
        """
        self._claim = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise NotPossibleHere(
                f"Another echovlm-dicom uses the spool {self.folder}: stop it, or give another --spool."
            ) from None
        with self._lock:
            known = {row["file"] for row in self._connection.execute("SELECT file FROM instances WHERE file != ''")}
        for path in (*self.incoming.iterdir(), *(path for path in self.instances.iterdir() if path.name not in known)):
            path.unlink()

    def close(self) -> None:
        """Close the database and release the spool."""
        with self._lock:
            self._connection.close()
        if self._claim is not None:
            os.close(self._claim)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run one transaction, and wake who waits for a change."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # a full disk rolls back by itself
                    self._connection.execute("ROLLBACK")
                raise
        with self.changed:
            self.changed.notify_all()

    def rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        """Read rows."""
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def wait(self, seconds: float) -> None:
        """Wait for a change by this process, for at most some seconds."""
        with self.changed:
            self.changed.wait(seconds)

    # ── Receiving ──

    def new_file(self) -> Path:
        """Return the path of a file to receive into."""
        return self.incoming / f"{secrets.token_hex(12)}.dcm"

    def store(self, arrival: Arrival) -> bool:
        """Add an instance whose file is written and synced; returns False, and removes the file, if the spool has it already.

        A study that was complete becomes `receiving` again, with the next version, unless the instance is set aside.

        Raises:
            OSError, sqlite3.Error: the disk is full or fails; nothing was added.
        """
        now, target = time.time(), self.instances / arrival.path.name
        with self._lock:
            known = self.rows(
                "SELECT 1 FROM instances JOIN studies ON studies.id = study WHERE uid = ? AND sop_instance = ? AND file != ''",
                *(arrival.study_uid, arrival.sop_instance),
            )
            if known:
                arrival.path.unlink()
                return False
            size = arrival.path.stat().st_size
            arrival.path.replace(target)
            try:
                _sync_folder(self.instances)
                with self.transaction() as sql:
                    study = self._study_for(sql, arrival, now)
                    sql.execute(
                        "DELETE FROM instances WHERE study = ? AND sop_instance = ?", (study, arrival.sop_instance)
                    )
                    sql.execute(
                        "INSERT INTO instances (study, sop_instance, sop_class, file, bytes, digest, ae_title, received, kind, header)"
                        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                        (
                            *(study, arrival.sop_instance, arrival.sop_class, target.name, size, arrival.digest),
                            *(arrival.ae_title, now, arrival.kind, json.dumps(arrival.header)),
                        ),
                    )
            except BaseException:
                with suppress(OSError):
                    target.unlink()
                raise
        return True

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
            self.rows(
                "SELECT (SELECT coalesce(sum(bytes), 0) FROM instances WHERE file != '') +"
                " (SELECT coalesce(sum(length(content)), 0) FROM documents) AS used"
            )[0]["used"]
        )

    def free_bytes(self) -> int:
        """Return the free space of the disk."""
        return shutil.disk_usage(self.folder).free

    # ── Studies ──

    def study(self, uid: str) -> Study:
        """Find a study by its UID or by its number.

        Raises:
            InvalidInput: the spool has no such study.
        """
        rows = self.rows("SELECT * FROM studies WHERE uid = ? OR CAST(id AS TEXT) = ?", uid, uid)
        if not rows:
            raise InvalidInput(f"The spool has no study {uid}: echovlm-dicom status lists them.")
        return study_of(rows[0])

    def studies(self, *states: StudyState) -> list[Study]:
        """List the studies in some states, the oldest first."""
        marks = ", ".join("?" * len(states))
        return [
            study_of(row) for row in self.rows(f"SELECT * FROM studies WHERE state IN ({marks}) ORDER BY id", *states)
        ]

    def instances_of(
        self, study: Study, kinds: Sequence[str] = ("still", "cine"), choice: str | None = None
    ) -> list[Instance]:
        """List a study's instances of some kinds in order of arrival.

        Args:
            study: the study.
            kinds: of the instances.
            choice: only those with this outcome; empty for those that nothing was decided about, None for all.
        """
        marks = ", ".join("?" * len(kinds))
        of_choice = {None: "", "": " AND choice IS NULL"}.get(choice, " AND json_extract(choice, '$.outcome') = ?")
        values = (study.id, *kinds, *([choice] if choice else []))
        rows = self.rows(
            f"SELECT * FROM instances WHERE study = ? AND file != '' AND kind IN ({marks}){of_choice} ORDER BY id",
            *values,
        )
        return [self._instance(row) for row in rows]

    def _instance(self, row: sqlite3.Row) -> Instance:
        return Instance(
            row["id"],
            self.instances / row["file"],
            row["sop_instance"],
            row["sop_class"],
            row["ae_title"],
            row["kind"],
            json.loads(row["header"]),
            json.loads(row["choice"]) if row["choice"] else None,
        )

    def undecided(self, study: Study, kind: str) -> bool:
        """Tell whether a study has instances of a kind that nothing was decided about."""
        return bool(
            self.rows(
                "SELECT 1 FROM instances WHERE study = ? AND kind = ? AND choice IS NULL AND file != '' LIMIT 1",
                study.id,
                kind,
            )
        )

    def choose(self, choices: Mapping[int, Mapping[str, Any] | None]) -> None:
        """Keep what was decided about instances, by their ids; None for nothing."""
        with self.transaction() as sql:
            sql.executemany(
                "UPDATE instances SET choice = ? WHERE id = ?",
                [(None if choice is None else json.dumps(choice), id) for id, choice in choices.items()],
            )

    def complete(self, study: Study, by: str) -> bool:
        """Move a study from `receiving` to `complete`; `by` says why."""
        return self._move(study, StudyState.COMPLETE, (StudyState.RECEIVING,), completed_by=by)

    def fail(self, study: Study, reason: str) -> bool:
        """Move a study from `complete` to `failed`."""
        return self._move(study, StudyState.FAILED, (StudyState.COMPLETE,), reason=reason)

    def try_again(self, study: Study) -> bool:
        """Move a study from `failed` to `complete`."""
        return self._move(study, StudyState.COMPLETE, (StudyState.FAILED,), reason="")

    def _move(self, study: Study, to: StudyState, allowed: tuple[StudyState, ...], **fields: str) -> bool:
        assert set(allowed) <= set(before(to))
        with self.transaction() as sql:
            return _moved(sql, study.id, study.version, to, allowed, **fields)

    def report(self, study: Study, documents: Sequence[Document], destinations: Sequence[tuple[int, str]]) -> bool:
        """Store a version's documents and what is owed of them: `complete` becomes `reported`.

        Older documents that were not acknowledged yet are superseded. Returns False, and stores nothing, if the study has gone on to
        another version.

        Args:
            study: as it was when its report was asked for.
            documents: of this version.
            destinations: who gets which: the document's place in `documents`, and the destination.
        """
        now = time.time()
        with self.transaction() as sql:
            if not _moved(sql, study.id, study.version, StudyState.REPORTED, (StudyState.COMPLETE,)):
                return False
            sql.execute(
                "UPDATE deliveries SET state = ?, changed = ? WHERE state = ? AND document IN"
                " (SELECT id FROM documents WHERE study = ?)",
                (DeliveryState.SUPERSEDED, now, DeliveryState.OWED, study.id),
            )
            ids = [_insert_document(sql, study, document, now) for document in documents]
            sql.executemany(
                "INSERT INTO deliveries (document, destination, state, changed) VALUES (?, ?, ?, ?)",
                [(ids[place], destination, DeliveryState.OWED, now) for place, destination in destinations],
            )
            return True

    def predecessor(self, study: Study) -> Document | None:
        """Return the last SR of the study that a destination has or may have; its content is left out."""
        rows = self.rows(
            "SELECT * FROM documents WHERE study = ? AND kind = 'sr' AND version < ? AND EXISTS"
            " (SELECT 1 FROM deliveries WHERE document = documents.id AND attempts > 0) ORDER BY version DESC LIMIT 1",
            *(study.id, study.version),
        )
        return document_of(rows[0], b"") if rows else None

    def records(self, study: Study) -> list[dict[str, Any]]:
        """Return the records of the study's SRs, the oldest version first."""
        rows = self.rows("SELECT record FROM documents WHERE study = ? AND kind = 'sr' ORDER BY version", study.id)
        return [json.loads(row["record"]) for row in rows]

    # ── Deliveries ──

    def owed(self) -> list[Owed]:
        """List what is owed, the oldest first, without the documents' bytes."""
        rows = self.rows(
            "SELECT deliveries.id AS delivery, deliveries.destination, deliveries.attempts, documents.*"
            " FROM deliveries JOIN documents ON documents.id = document WHERE deliveries.state = ? ORDER BY deliveries.id",
            DeliveryState.OWED,
        )
        return [
            Owed(
                row["delivery"],
                row["study"],
                row["version"],
                row["destination"],
                document_of(row, b""),
                row["attempts"],
            )
            for row in rows
        ]

    def begin_attempt(self, delivery: int) -> bytes | None:
        """Count an attempt before it is made; returns the document's bytes, or None if it is not owed any more."""
        with self.transaction() as sql:
            row = sql.execute(
                "SELECT content FROM deliveries JOIN documents ON documents.id = document"
                " WHERE deliveries.id = ? AND state = ?",
                (delivery, DeliveryState.OWED),
            ).fetchone()
            sql.execute(
                "UPDATE deliveries SET attempts = attempts + 1, changed = ? WHERE id = ?", (time.time(), delivery)
            )
            return None if row is None else bytes(row["content"])

    def acknowledge(self, delivery: int) -> None:
        """Note that a destination has a document; with the last one its study becomes `delivered`."""
        now = time.time()
        with self.transaction() as sql:
            sql.execute(
                "UPDATE deliveries SET state = ?, error = '', changed = ? WHERE id = ?",
                (DeliveryState.DELIVERED, now, delivery),
            )
            row = sql.execute(
                "SELECT study, version FROM documents WHERE id = (SELECT document FROM deliveries WHERE id = ?)",
                (delivery,),
            ).fetchone()
            owed = sql.execute(
                "SELECT 1 FROM deliveries JOIN documents ON documents.id = document WHERE study = ? AND state = ?",
                (row["study"], DeliveryState.OWED),
            ).fetchone()
            if not owed:
                _moved(sql, row["study"], row["version"], StudyState.DELIVERED, (StudyState.REPORTED,))

    def refuse(self, delivery: int, error: str) -> None:
        """Note why an attempt failed."""
        with self.transaction() as sql:
            sql.execute("UPDATE deliveries SET error = ?, changed = ? WHERE id = ?", (error, time.time(), delivery))

    def resend(self, study: Study) -> int:
        """Owe the last version's documents again, the very same objects; returns how many."""
        with self.transaction() as sql:
            again = sql.execute(
                "UPDATE deliveries SET state = ?, changed = ? WHERE state = ? AND document IN"
                " (SELECT id FROM documents WHERE study = ? AND version = ? AND content IS NOT NULL)",
                (DeliveryState.OWED, time.time(), DeliveryState.DELIVERED, study.id, study.version),
            ).rowcount
            if again:
                _moved(sql, study.id, study.version, StudyState.REPORTED, (StudyState.DELIVERED,))
            return again

    # ── Emptying ──

    def empty(self, study: Study) -> bool:
        """Remove the files of a study that is delivered or failed, and its documents' bytes; its UIDs and versions are kept."""
        with self._lock:
            rows = self.rows("SELECT file FROM instances WHERE study = ? AND file != ''", study.id)
            with self.transaction() as sql:
                allowed = (StudyState.DELIVERED, StudyState.FAILED)
                if not _moved(sql, study.id, study.version, StudyState.EMPTIED, allowed):
                    return False
                sql.execute("DELETE FROM instances WHERE study = ?", (study.id,))
                sql.execute("UPDATE documents SET content = NULL, record = '{}' WHERE study = ?", (study.id,))
        for row in rows:
            (self.instances / row["file"]).unlink(missing_ok=True)
        return True

    def forget(self, before_time: float) -> None:
        """Remove all rows of studies that were emptied before a time."""
        old = "SELECT id FROM studies WHERE state = ? AND changed < ?"
        with self.transaction() as sql:
            values = (StudyState.EMPTIED, before_time)
            sql.execute(
                f"DELETE FROM deliveries WHERE document IN (SELECT id FROM documents WHERE study IN ({old}))", values
            )
            sql.execute(f"DELETE FROM documents WHERE study IN ({old})", values)
            sql.execute("DELETE FROM studies WHERE state = ? AND changed < ?", values)
            sql.execute("DELETE FROM procedure_steps WHERE changed < ?", (before_time,))


def _moved(
    sql: sqlite3.Connection, study: int, version: int, to: StudyState, allowed: tuple[StudyState, ...], **fields: str
) -> bool:
    """Move a study to a state if it still has that version and one of the states allowed; returns whether it did."""
    assigned = "".join(f", {name} = ?" for name in fields)
    marks = ", ".join("?" * len(allowed))
    moved = sql.execute(
        f"UPDATE studies SET state = ?, changed = ?{assigned} WHERE id = ? AND version = ? AND state IN ({marks})",
        (to, time.time(), *fields.values(), study, version, *allowed),
    )
    return moved.rowcount == 1


def _insert_document(sql: sqlite3.Connection, study: Study, document: Document, now: float) -> int:
    inserted = sql.execute(
        "INSERT INTO documents (study, version, kind, sop_class, sop_instance, series, content, record, made)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(study.id, study.version, document.kind, document.sop_class, document.sop_instance, document.series),
            *(document.content, json.dumps(document.record), now),
        ),
    )
    return int(inserted.lastrowid or 0)


def _sync_folder(folder: Path) -> None:
    """Make a rename in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
