"""What goes wrong besides kill -9: a full disk, a server that forgets or is away, a study of very many instances."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks import served
from echovlm_edge.runtime.dicom_node.receiving import received_file
from echovlm_edge.runtime.dicom_node.reporting import working
from echovlm_edge.runtime.serving.studies import StudyLimits
from echovlm_edge.runtime.serving.transport.server import ServerOptions
from tests.support.carts import Pacs, cine, running_node, still, store, study_of, write
from tests.support.running_server import running
from tests.support.waiting import wait_for

INSTANCES = 2000 if os.environ.get("ECHOVLM_LONG") else 150


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(working, "LONGEST_PAUSE", 0.3)


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """A disk that is full while the list's one item is True."""
    state = [False]
    write_plain = os.write

    def fill(file: int, data: bytes) -> int:
        if state[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_plain(file, data)

    monkeypatch.setattr(received_file.os, "write", fill)
    yield state


def test_a_full_disk_refuses_and_loses_nothing(full: list[bool], tmp_path: Path, server: str, pacs: Pacs) -> None:
    study = study_of()
    files = write(tmp_path / "in", *(still(study, seed) for seed in range(4)))
    with running_node(tmp_path / "spool", server, destination=(pacs.name,), quiet_seconds=1.5) as node:
        assert store(node, files[:2]) == {}
        full[0] = True
        assert store(node, files[2:]) == {files[2]: 0xA700, files[3]: 0xA700}
        full[0] = False
        assert store(node, files[2:3]) == {}
        wait_for(lambda: pacs.documents())
        kept = node.spool.deliveries.records(node.spool.studies.find(str(study["StudyInstanceUID"])))[-1]
    assert [uid for uid, _ in kept["instances"]] == [path.stem for path in files[:3]]


def test_a_full_database_refuses_and_loses_nothing(tmp_path: Path, server: str, pacs: Pacs) -> None:
    """A report that cannot be written down is asked for again, once there is room."""
    one, two = study_of(), study_of()
    files = write(tmp_path / "in", still(one, 1), *(still(two, seed) for seed in range(20)))
    with running_node(tmp_path / "spool", server, destination=(pacs.name,), quiet_seconds=1.0) as node:
        assert store(node, files[:1]) == {}
        database = node.spool.database._connection
        pages = database.execute("PRAGMA page_count").fetchone()[0]
        database.execute(f"PRAGMA max_page_count = {pages}")
        refused = store(node, files[1:])
        assert refused and set(refused.values()) == {0xA700}
        assert len(list(node.spool.arrivals.instances.iterdir())) == len(files) - len(refused)
        wait_for(lambda: node.spool.studies.find(str(one["StudyInstanceUID"])).state == "complete")
        assert not pacs.documents(one["StudyInstanceUID"])
        database.execute("PRAGMA max_page_count = 1000000")
        assert store(node, list(refused)) == {}
        wait_for(lambda: len(pacs.documents()) >= 2)
        wait_for(lambda: not node.spool.deliveries.owed())
        assert len(pacs.documents(one["StudyInstanceUID"])) == 1


def test_a_study_that_the_server_has_forgotten_is_begun_again(golden_bundle: Path, tmp_path: Path, pacs: Pacs) -> None:
    study = study_of()
    files = write(tmp_path / "in", still(study, 1), cine(study, 2), still(study, 3))
    options = ServerOptions(studies=StudyLimits(expires_after_seconds=0.05))
    with (
        running(golden_bundle, options) as forgetful,
        running_node(tmp_path / "spool", forgetful.server.address, destination=(pacs.name,), quiet_seconds=1.5) as node,
    ):
        store(node, files[:1])
        wait_for(
            lambda: not node.spool.studies.undecided(node.spool.studies.find(str(study["StudyInstanceUID"])), "still")
        )
        store(node, files[1:])
        wait_for(lambda: pacs.documents())
        kept = node.spool.deliveries.records(node.spool.studies.find(str(study["StudyInstanceUID"])))[-1]
    assert [uid for uid, _ in kept["instances"]] == [files[0].stem, files[2].stem, files[1].stem]


def test_a_server_that_is_away_delays_a_report_and_loses_none(golden_bundle: Path, tmp_path: Path, pacs: Pacs) -> None:
    study, folder = study_of(), tmp_path / "server"
    folder.mkdir()
    port = served.free_port()
    with running_node(tmp_path / "spool", f"127.0.0.1:{port}", destination=(pacs.name,)) as node:
        store(node, write(tmp_path / "in", still(study, 1), cine(study, 2)))
        uid = str(study["StudyInstanceUID"])
        wait_for(lambda: node.spool.studies.find(uid).state == "complete" and node.working.server_faults > 2)
        with served.serving(golden_bundle, folder, "--listen", f"127.0.0.1:{port}"):
            wait_for(lambda: node.spool.studies.find(uid).state == "delivered")
    assert len(pacs.documents()) == 1


def resident(node_pid: int) -> int:
    return int(psutil.Process(node_pid).memory_info().rss)


def test_a_study_of_very_many_instances_takes_bounded_memory(tmp_path: Path, server: str, pacs: Pacs) -> None:
    study, folder = study_of(), tmp_path / "node"
    folder.mkdir()
    options = ("--destination", pacs.name, "--quiet-seconds", 1, "--max-new-tokens", 8, "--max-rate", 10_000)
    with served.receiving(tmp_path / "spool", folder, server, *options) as node:
        store(node.address, write(tmp_path / "in", still(study_of(), 1)))
        wait_for(lambda: pacs.documents())  # all libraries are loaded
        before = resident(node.pid)
        for start in range(0, INSTANCES, 100):
            seeds = range(start, min(start + 100, INSTANCES))
            assert store(node.address, write(tmp_path / "in", *(still(study, seed) for seed in seeds))) == {}
        wait_for(lambda: pacs.documents(study["StudyInstanceUID"]), 120)
        assert resident(node.pid) - before < 64 << 20


def test_an_instance_of_many_megabytes_takes_none(tmp_path: Path) -> None:
    """It is written as it arrives."""
    import numpy as np

    from tests.support.dicom_files import ultrasound

    folder = tmp_path / "node"
    folder.mkdir()
    frames = ultrasound(np.zeros((400, 500, 500), np.uint8), "MONOCHROME2", **study_of(), NumberOfFrames=400)
    files = write(tmp_path / "in", frames)
    options = ("--destination", f"{tmp_path}/out", "--quiet-seconds", 60)
    with served.receiving(tmp_path / "spool", folder, "127.0.0.1:9", *options) as node:
        store(node.address, write(tmp_path / "in", still(study_of(), 1)))
        before = resident(node.pid)
        assert store(node.address, files) == {}
        assert resident(node.pid) - before < 60 << 20  # of 100 MB


def test_a_study_is_complete_in_time_while_the_server_does_not_answer(
    tmp_path: Path, pacs: Pacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that its report is asked for at once when the server is back."""
    monkeypatch.setattr(working, "FIRST_PAUSE", 1000.0)
    monkeypatch.setattr(working, "LONGEST_PAUSE", 1000.0)
    study = study_of()
    with running_node(tmp_path / "spool", "127.0.0.1:9", destination=(pacs.name,), quiet_seconds=1) as node:
        store(node, write(tmp_path / "in", still(study, 1)))
        wait_for(lambda: node.working.server_faults == 1)
        wait_for(lambda: node.spool.studies.find(str(study["StudyInstanceUID"])).state == "complete")
        assert node.working.server_faults == 1, "it waits before it asks again"
