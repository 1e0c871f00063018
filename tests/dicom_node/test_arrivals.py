"""Instances that come at once: on a slow disk they share a transaction, and all of it is there or nothing."""

from __future__ import annotations

import errno
import logging
import sqlite3
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.dicom_node.spool import spool as spool_module
from echovlm_edge.runtime.dicom_node.spool.arrivals import Stored
from echovlm_edge.runtime.dicom_node.spool.rows import Arrival
from echovlm_edge.runtime.dicom_node.spool.spool import Spool
from tests.support.carts import running_node, still, store, study_of, write
from tests.support.waiting import wait_for

CARTS = 16


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool(tmp_path / "spool")
    yield opened
    opened.close()


def come(spool: Spool, pool: ThreadPoolExecutor, instances: list[str]) -> list[Future[Stored]]:
    """Let instances come while the database is busy; returns what becomes of each."""
    with spool.database.lock:
        futures = []
        for uid in instances:
            path = spool.arrivals.new_file()
            path.write_bytes(uid.encode())
            arrival = Arrival(path, "1.2", uid, "1.2.840", uid.encode(), "CART", "still", {})
            futures.append(pool.submit(spool.arrivals.store, arrival))
        wait_for(lambda: len(spool.arrivals._waiting) == len(instances))
    return futures


def test_instances_that_wait_share_a_transaction(spool: Spool) -> None:
    statements: list[str] = []
    spool.database._connection.set_trace_callback(statements.append)
    with ThreadPoolExecutor(CARTS) as pool:
        names = [f"1.2.{number}" for number in range(CARTS - 1)]
        stored = [future.result() for future in come(spool, pool, [*names, names[0]])]
    assert sorted(stored) == [Stored.AGAIN, *[Stored.NEW] * (CARTS - 1)]
    assert statements.count("COMMIT") == 1
    assert len(list(spool.arrivals.instances.iterdir())) == CARTS - 1
    assert len(spool.studies.instances_of(spool.studies.find("1.2"))) == CARTS - 1


def test_a_full_disk_refuses_all_that_share_a_transaction(spool: Spool) -> None:
    database = spool.database._connection
    pages = database.execute("PRAGMA page_count").fetchone()[0]
    database.execute(f"PRAGMA max_page_count = {pages}")
    with ThreadPoolExecutor(4) as pool:
        futures = come(spool, pool, ["1.2." + "3" * 3000 + str(number) for number in range(4)])
        for future in futures:
            with pytest.raises(sqlite3.Error):
                future.result()
        assert not list(spool.arrivals.instances.iterdir()) and not list(spool.arrivals.incoming.iterdir())
        database.execute("PRAGMA max_page_count = 1000000")
        assert [future.result() for future in come(spool, pool, ["1.2.3", "1.2.4"])] == [Stored.NEW] * 2


def test_the_first_of_two_instances_with_one_uid_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    study, audit = study_of(), tmp_path / "audit"
    first = still(study, 1)
    other = still(study, 2, SOPInstanceUID=first.SOPInstanceUID)
    options = {"destination": (f"{tmp_path}/out",), "quiet_seconds": 600, "audit": audit}
    with running_node(tmp_path / "spool", "127.0.0.1:9", **options) as node:
        for instance in (first, first, other):
            assert store(node, write(tmp_path / "in", instance)) == {}
        assert node.receiver.counts == {"stored": 1, "again": 1, "different": 1, "refused": 0}
        (kept,) = node.spool.arrivals.instances.iterdir()
        assert first.PixelData in kept.read_bytes()
    assert "other bytes, the first is kept" in audit.read_text() and "other bytes" in caplog.text


def test_a_folder_that_cannot_be_written_is_named(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that became read-only, which SQLite opens nonetheless."""

    def refuse(*arguments: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(spool_module.os, "open", refuse)
    with pytest.raises(NotPossibleHere, match="cannot be used \\(Read-only file system\\)"):
        spool.claim()
