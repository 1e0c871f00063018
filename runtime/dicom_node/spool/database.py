"""The spool's database: one SQLite connection that threads share behind a lock, and who waits for a change of it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.dicom_node.spool.rows import SCHEMA, TABLES

LOCKED_SECONDS = 30.0  # that another process may take for a transaction


class Database:
    """An open database. Threads may share it, and other processes may open it too.

    Attributes:
        lock: held while the connection is used; a thread may take it again.

    Raises:
        sqlite3.Error: the file cannot be used.
        NotPossibleHere: it was written by a newer version.
    """

    def __init__(self, folder: Path) -> None:
        """Open `spool.db` of a folder, or create it."""
        self._folder = folder
        self.lock = threading.RLock()
        self._changed = threading.Condition()
        self._connection = sqlite3.connect(
            folder / "spool.db", check_same_thread=False, isolation_level=None, timeout=LOCKED_SECONDS
        )
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._create()

    def _create(self) -> None:
        with self.transaction() as sql:
            version = sql.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA:
                raise NotPossibleHere(
                    f"The spool {self._folder} was written by a newer version: upgrade this one, or give another --spool."
                )
            if version == 0:
                for statement in filter(str.strip, TABLES.split(";")):
                    sql.execute(statement)
                sql.execute(f"PRAGMA user_version = {SCHEMA}")

    def close(self) -> None:
        """Close the connection."""
        with self.lock:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run one transaction, and wake who waits for a change."""
        with self.lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # a full disk rolls back by itself
                    self._connection.execute("ROLLBACK")
                raise
        self.wake()

    def rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        """Read rows."""
        with self.lock:
            return self._connection.execute(query, values).fetchall()

    def wait(self, seconds: float) -> None:
        """Wait for a change by this process, for at most some seconds."""
        with self._changed:
            self._changed.wait(seconds)

    def wake(self) -> None:
        """Wake who waits for a change."""
        with self._changed:
            self._changed.notify_all()
