"""The studies of a spool: in which state each is, which instances it has, and what was decided about them."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.dicom_node.spool.database import Database
from echovlm_edge.runtime.dicom_node.spool.rows import Instance, Study, study_of
from echovlm_edge.runtime.dicom_node.spool.states import StudyState, before


class Studies:
    """Reads studies, and moves them from state to state. Threads may share it."""

    def __init__(self, instances: Path, database: Database) -> None:
        """Read and write the studies of `database`, whose instances' files are in the folder `instances`."""
        self._instances, self._database = instances, database

    def find(self, uid: str) -> Study:
        """Find a study by its UID or by its number.

        Raises:
            InvalidInput: the spool has no such study.
        """
        rows = self._database.rows("SELECT * FROM studies WHERE uid = ? OR CAST(id AS TEXT) = ?", uid, uid)
        if not rows:
            raise InvalidInput(f"The spool has no study {uid}: echovlm-dicom status lists them.")
        return study_of(rows[0])

    def in_states(self, *states: StudyState) -> list[Study]:
        """List the studies in some states, the oldest first."""
        marks = ", ".join("?" * len(states))
        return [
            study_of(row)
            for row in self._database.rows(f"SELECT * FROM studies WHERE state IN ({marks}) ORDER BY id", *states)
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
        rows = self._database.rows(
            f"SELECT * FROM instances WHERE study = ? AND file != '' AND kind IN ({marks}){of_choice} ORDER BY id",
            *values,
        )
        return [self._instance(row) for row in rows]

    def _instance(self, row: sqlite3.Row) -> Instance:
        return Instance(
            row["id"],
            self._instances / row["file"],
            row["sop_instance"],
            row["sop_class"],
            row["ae_title"],
            row["kind"],
            json.loads(row["header"]),
            json.loads(row["choice"]) if row["choice"] else None,
        )

    def patients(self, study: Study) -> dict[int, str]:
        """Return the PatientID that each instance of a study states, by the instances' ids; empty for none."""
        rows = self._database.rows(
            "SELECT id, json_extract(header, '$.00100020.Value[0]') AS patient FROM instances WHERE study = ?", study.id
        )
        return {row["id"]: str(row["patient"] or "") for row in rows}

    def undecided(self, study: Study, kind: str) -> bool:
        """Tell whether a study has instances of a kind that nothing was decided about."""
        return bool(
            self._database.rows(
                "SELECT 1 FROM instances WHERE study = ? AND kind = ? AND choice IS NULL AND file != '' LIMIT 1",
                study.id,
                kind,
            )
        )

    def choose(self, choices: Mapping[int, Mapping[str, Any] | None]) -> None:
        """Keep what was decided about instances, by their ids; None for nothing."""
        with self._database.transaction() as sql:
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
        with self._database.transaction() as sql:
            return move(sql, study.id, study.version, to, allowed, **fields)

    def empty(self, study: Study) -> bool:
        """Remove the files of a study that is delivered or failed, and its documents' bytes; its UIDs and versions are kept."""
        with self._database.lock:
            rows = self._database.rows("SELECT file FROM instances WHERE study = ? AND file != ''", study.id)
            with self._database.transaction() as sql:
                allowed = (StudyState.DELIVERED, StudyState.FAILED)
                if not move(sql, study.id, study.version, StudyState.EMPTIED, allowed):
                    return False
                sql.execute("DELETE FROM instances WHERE study = ?", (study.id,))
                sql.execute("UPDATE documents SET content = NULL, record = '{}' WHERE study = ?", (study.id,))
        for row in rows:
            (self._instances / row["file"]).unlink(missing_ok=True)
        return True

    def forget(self, before_time: float) -> None:
        """Remove all rows of studies that were emptied before a time."""
        old = "SELECT id FROM studies WHERE state = ? AND changed < ?"
        with self._database.transaction() as sql:
            values = (StudyState.EMPTIED, before_time)
            sql.execute(
                f"DELETE FROM deliveries WHERE document IN (SELECT id FROM documents WHERE study IN ({old}))", values
            )
            sql.execute(f"DELETE FROM documents WHERE study IN ({old})", values)
            sql.execute("DELETE FROM studies WHERE state = ? AND changed < ?", values)
            sql.execute("DELETE FROM procedure_steps WHERE changed < ?", (before_time,))


def move(
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
