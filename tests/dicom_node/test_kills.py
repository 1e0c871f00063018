"""kill -9 of the node and of the server at random moments: every study has exactly one delivered report of its last version."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import served
from echovlm_edge.runtime.contracts.errors import UserError
from echovlm_edge.runtime.dicom_node.spool.spool import Spool
from tests.support.carts import Pacs, cine, still, store, study_of, write
from tests.support.waiting import wait_for

LONG = bool(os.environ.get("ECHOVLM_LONG"))
MOMENTS, STUDIES = (50, 20) if LONG else (4, 3)
SEED = 20261128


class Killed:
    """A process that is killed and started again."""

    def __init__(self, start: Callable[[], subprocess.Popen[Any]], folder: Path) -> None:
        """Start it, and wait until it is ready."""
        self._start, self._folder = start, folder
        self.start()

    def start(self) -> None:
        """Start it, and wait until it is ready or has ended."""
        self.process = self._start()
        wait_for(lambda: served.port_file(self._folder).exists() or self.process.poll() is not None)

    def kill(self) -> None:
        """Kill -9."""
        self.process.kill()
        self.process.wait()


def test_every_study_has_one_report_of_its_last_version(golden_bundle: Path, tmp_path: Path, pacs: Pacs) -> None:
    random_moments = random.Random(SEED)
    node_port, server_port = served.free_port(), served.free_port()
    folders = [tmp_path / name for name in ("server", "node")]
    for folder in folders:
        folder.mkdir()
    log = (tmp_path / "log").open("w")
    streams = {"stdout": subprocess.DEVNULL, "stderr": log}
    options = ("--destination", pacs.name, "--quiet-seconds", 0.5, "--max-new-tokens", 4, "--reserve-mb", 0)
    spool = tmp_path / "spool"
    server = Killed(
        lambda: served.start(golden_bundle, folders[0], "--listen", f"127.0.0.1:{server_port}", **streams), folders[0]
    )
    node = Killed(
        lambda: served.start_node(
            *(spool, folders[1], f"127.0.0.1:{server_port}", "--listen", f"127.0.0.1:{node_port}", *options), **streams
        ),
        folders[1],
    )
    studies = [study_of(patient=f"P{number}") for number in range(STUDIES)]
    sent = {
        str(study["StudyInstanceUID"]): write(
            tmp_path / "in", *(still(study, 10 * number + seed) for seed in range(3)), cine(study, 10 * number + 5)
        )
        for number, study in enumerate(studies)
    }
    carts = threading.Thread(
        target=send_all, args=(list(sent.values()), f"127.0.0.1:{node_port}", random_moments.random())
    )
    carts.start()
    try:
        for _ in range(MOMENTS):
            time.sleep(random_moments.uniform(0.02, 2.5))
            one = random_moments.choice((node, node, server))
            one.kill()
            one.start()
        carts.join(120)
        assert not carts.is_alive()
        wait_for(lambda: states(spool) == ["delivered"] * STUDIES, 180)
    finally:
        node.kill()
        server.kill()
        log.close()
    text = (tmp_path / "log").read_text()
    assert "Sekret" not in text and "ZQX" not in text
    for uid, files in sent.items():
        documents = pacs.documents(uid)
        last = [document for document in documents if document.SOPInstanceUID == last_of(spool, uid)]
        assert len(last) == 1, "exactly one report of the last version"
        references = last[0].CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
        assert {one.ReferencedSOPInstanceUID for one in references.ReferencedSOPSequence} == {
            file.stem for file in files
        }
        versions = {document.SOPInstanceUID for document in documents}
        assert len(versions) == len(documents)
        for contents in (pacs.received[version] for version in versions):
            assert len(set(contents)) == 1, "an object that came again is the very same"


def send_all(studies: list[list[Path]], address: str, seed: float) -> None:
    """Send the studies, an association each, and what was not acknowledged again."""
    pause = random.Random(seed)
    for files in studies:
        left = list(files)
        while left:
            try:
                refused = store(address, left)
                left = [path for path in left if path in refused]
            except UserError:
                time.sleep(0.1)
        time.sleep(pause.uniform(0, 0.3))


def states(spool: Path) -> list[str]:
    """The states of all studies, read as another process does."""
    with sqlite3.connect(spool / "spool.db", timeout=30) as database:
        return [state for (state,) in database.execute("SELECT state FROM studies")]


def last_of(spool: Path, uid: str) -> str:
    """The SOP Instance UID of a study's last version."""
    with sqlite3.connect(spool / "spool.db", timeout=30) as database:
        query = (
            "SELECT sop_instance FROM documents JOIN studies ON studies.id = study"
            " WHERE uid = ? AND documents.version = studies.version"
        )
        (found,) = database.execute(query, (uid,)).fetchall()
        return str(found[0])


@pytest.mark.parametrize("moment", range(8))
def test_a_study_survives_a_kill_after_each_step_of_storing(moment: int, tmp_path: Path) -> None:
    """A child process receives an instance and dies at one system call of it; the next one has the whole instance, or nothing."""
    program = """
import os, sys
from pathlib import Path
from echovlm_edge.runtime.dicom_node.spool import arrivals
from echovlm_edge.runtime.dicom_node.spool.spool import Spool
from echovlm_edge.runtime.dicom_node.spool.rows import Arrival
left = [int(sys.argv[2])]
def dying(call):
    def counted(*arguments, **named):
        if left[0] == 0:
            os._exit(9)
        left[0] -= 1
        return call(*arguments, **named)
    return counted
spool = Spool(Path(sys.argv[1]))
spool.claim()
path = spool.arrivals.new_file()
path.write_bytes(b"instance")
Path.replace, arrivals.sync = dying(Path.replace), dying(arrivals.sync)
class Connection:
    def __init__(self, real):
        self.real = real
    def __getattr__(self, name):
        return getattr(self.real, name)
    def execute(self, *arguments):
        return dying(self.real.execute)(*arguments) if not arguments[0].startswith("SELECT 1") else self.real.execute(*arguments)
spool.database._connection = Connection(spool.database._connection)
spool.arrivals.store(Arrival(path, "1.2", "1.2.3", "1.2.840", b"digest", "CART", "still", {}))
print("stored")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(moment)], capture_output=True, text=True, check=False
    )
    spool = Spool(tmp_path)
    spool.claim()
    files = list(spool.arrivals.instances.iterdir())
    held = spool.database.rows("SELECT file FROM instances WHERE sop_instance = '1.2.3'")
    assert held or "stored" not in done.stdout
    assert [file.name for file in files] == [row["file"] for row in held]
    assert not list(spool.arrivals.incoming.iterdir())
    spool.close()
