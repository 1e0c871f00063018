"""What is owed: the documents of each version of a study, and who has them already."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence
from typing import Any

from echovlm_edge.runtime.dicom_node.spool.database import Database
from echovlm_edge.runtime.dicom_node.spool.rows import Document, Owed, Study, document_of
from echovlm_edge.runtime.dicom_node.spool.states import DeliveryState, StudyState
from echovlm_edge.runtime.dicom_node.spool.studies import move


class Deliveries:
    """The documents of a spool and their deliveries. Threads may share it."""

    def __init__(self, database: Database) -> None:
        """Keep them in `database`."""
        self._database = database

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
        with self._database.transaction() as sql:
            if not move(sql, study.id, study.version, StudyState.REPORTED, (StudyState.COMPLETE,)):
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
        rows = self._database.rows(
            "SELECT * FROM documents WHERE study = ? AND kind = 'sr' AND version < ? AND EXISTS"
            " (SELECT 1 FROM deliveries WHERE document = documents.id AND attempts > 0) ORDER BY version DESC LIMIT 1",
            *(study.id, study.version),
        )
        return document_of(rows[0], b"") if rows else None

    def records(self, study: Study) -> list[dict[str, Any]]:
        """Return the records of the study's SRs, the oldest version first."""
        rows = self._database.rows(
            "SELECT record FROM documents WHERE study = ? AND kind = 'sr' ORDER BY version", study.id
        )
        return [json.loads(row["record"]) for row in rows]

    def owed(self) -> list[Owed]:
        """List what is owed, the oldest first, without the documents' bytes."""
        rows = self._database.rows(
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
        with self._database.transaction() as sql:
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
        with self._database.transaction() as sql:
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
                move(sql, row["study"], row["version"], StudyState.DELIVERED, (StudyState.REPORTED,))

    def refuse(self, delivery: int, error: str) -> None:
        """Note why an attempt failed."""
        with self._database.transaction() as sql:
            sql.execute("UPDATE deliveries SET error = ?, changed = ? WHERE id = ?", (error, time.time(), delivery))

    def resend(self, study: Study) -> int:
        """Owe the last version's documents again, the very same objects; returns how many."""
        with self._database.transaction() as sql:
            again = sql.execute(
                "UPDATE deliveries SET state = ?, changed = ? WHERE state = ? AND document IN"
                " (SELECT id FROM documents WHERE study = ? AND version = ? AND content IS NOT NULL)",
                (DeliveryState.OWED, time.time(), DeliveryState.DELIVERED, study.id, study.version),
            ).rowcount
            if again:
                move(sql, study.id, study.version, StudyState.REPORTED, (StudyState.DELIVERED,))
            return again


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
