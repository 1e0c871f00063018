"""What goes out: the very same object, again and again until it is acknowledged, to each destination."""

from __future__ import annotations

import io
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import BasicTextSRStorage

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.dicom_node.delivery import delivering, destinations
from echovlm_edge.runtime.dicom_node.delivery.delivering import Backoff
from echovlm_edge.runtime.dicom_node.delivery.destinations import NotDelivered, OwnIdentity, StorePeer, destination
from echovlm_edge.runtime.dicom_node.node import Node
from echovlm_edge.runtime.dicom_node.spool.rows import Document
from echovlm_edge.runtime.dicom_node.status import summaries
from tests.support.carts import Pacs, running_node, still, store, study_of, write
from tests.support.waiting import wait_for


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivering, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(delivering, "LONGEST_PAUSE", 0.2)


@pytest.fixture
def study() -> dict[str, object]:
    return study_of()


def state(node: Node, study: dict[str, object]) -> str:
    return str(node.spool.studies.find(str(study["StudyInstanceUID"])).state)


def test_a_destination_that_is_down_gets_the_same_object_later(
    study: dict[str, object], tmp_path: Path, server: str, pacs: Pacs
) -> None:
    pacs.stop()
    with running_node(tmp_path / "spool", server, destination=(pacs.name,)) as node:
        store(node, write(tmp_path / "in", still(study, 1)))
        wait_for(lambda: any(owed.attempts > 1 for owed in node.spool.deliveries.owed()))
        assert state(node, study) == "reported"
        pacs.start()
        wait_for(lambda: state(node, study) == "delivered")
        before = pacs.documents()[0].SOPInstanceUID
        assert node.spool.deliveries.resend(node.spool.studies.find(str(study["StudyInstanceUID"]))) == 1
        wait_for(lambda: len(pacs.received[before]) == 2)
    first, again = pacs.received[before]
    assert first == again and len(pacs.received) == 1


def test_a_destination_that_refuses_is_asked_until_it_accepts(
    study: dict[str, object], tmp_path: Path, server: str, pacs: Pacs
) -> None:
    pacs.status = 0xA700
    with running_node(tmp_path / "spool", server, destination=(pacs.name, f"{tmp_path}/out")) as node:
        store(node, write(tmp_path / "in", still(study, 1)))
        wait_for(lambda: (tmp_path / "out").is_dir() and any((tmp_path / "out").glob("*.dcm")))
        wait_for(lambda: any("A700" in one.error for one in summaries(node.spool)))
        assert state(node, study) == "reported"
        pacs.status = 0
        wait_for(lambda: state(node, study) == "delivered")
    (file,) = (tmp_path / "out").glob("*.dcm")
    (document,) = pacs.documents()
    assert pydicom.dcmread(file) == document


@pytest.fixture
def silent() -> Iterator[list[str]]:
    """Destinations that accept a connection and never answer."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(5)]
    yield [f"PACS@127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()


def test_destinations_that_never_answer_delay_no_other(
    study: dict[str, object], tmp_path: Path, server: str, silent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, ended = threading.Barrier(len(silent) + 1), threading.Event()

    def hang(peer: StorePeer, document: Document) -> None:
        waiting.wait()
        ended.wait()
        raise NotDelivered("it did not answer")

    monkeypatch.setattr(StorePeer, "send", hang)
    with running_node(tmp_path / "spool", server, destination=(*silent, f"{tmp_path}/out")) as node:
        store(node, write(tmp_path / "in", still(study, 1)))
        waiting.wait(60)  # all of them are being waited for at once
        wait_for(lambda: any((tmp_path / "out").glob("*.dcm")))
        waiting.abort()
        ended.set()


def test_a_destination_that_never_answers_is_given_up_and_named(
    silent: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(destinations, "TIMEOUT_SECONDS", 0.3)
    own = OwnIdentity("ECHOVLM", tmp_path, ssl.create_default_context())
    document = Document("sr", str(BasicTextSRStorage), "1.2.3", "1.2", b"")
    for name in (silent[0], f"tls://{silent[1]}", "PACS@no-such-host.invalid:104"):
        with pytest.raises(NotDelivered, match="cannot be reached"):
            destination(name, ("sr",), own).send(document)


@pytest.mark.parametrize("status", [0xB000, 0xB006, 0xB007])
def test_a_warning_means_that_the_document_is_there(
    status: int, study: dict[str, object], tmp_path: Path, server: str, pacs: Pacs
) -> None:
    pacs.status = status
    with running_node(tmp_path / "spool", server, destination=(pacs.name,)) as node:
        store(node, write(tmp_path / "in", still(study, 1)))
        wait_for(lambda: state(node, study) == "delivered")
        assert node.delivering.counts == {"delivered": 1, "failed": 0}


def test_what_is_owed_is_delivered_after_a_restart(
    study: dict[str, object], tmp_path: Path, server: str, pacs: Pacs
) -> None:
    pacs.stop()
    with running_node(tmp_path / "spool", server, destination=(pacs.name,)) as node:
        store(node, write(tmp_path / "in", still(study, 1)))
        wait_for(lambda: state(node, study) == "reported")
        (owed,) = node.spool.deliveries.owed()
    pacs.start()
    with running_node(
        tmp_path / "spool", "127.0.0.1:9", destination=(pacs.name,)
    ) as node:  # no server is needed for it
        wait_for(lambda: state(node, study) == "delivered")
    assert [document.SOPInstanceUID for document in pacs.documents()] == [owed.document.sop_instance]


def test_an_older_version_that_nobody_has_is_superseded(
    study: dict[str, object], tmp_path: Path, server: str, pacs: Pacs
) -> None:
    one, two = write(tmp_path / "in", still(study, 1), still(study, 2))
    elsewhere = Backoff(3600, 3600)
    pacs.stop()
    with running_node(tmp_path / "spool", server, destination=(pacs.name,)) as node:
        node.delivering._backoff = elsewhere  # one attempt and no more
        store(node, [one])
        wait_for(lambda: any("cannot be reached" in each.error for each in summaries(node.spool)))
        store(node, [two])
        wait_for(lambda: [owed.version for owed in node.spool.deliveries.owed()] == [2])
        pacs.start()
        node.delivering._backoff = Backoff(0.05, 0.2)
        wait_for(lambda: state(node, study) == "delivered")
    (document,) = pacs.documents()
    assert "PredecessorDocumentsSequence" in document  # the first may have arrived: its attempt was begun


def test_a_wrong_destination_is_refused_by_name(tmp_path: Path) -> None:
    for wrong in ("PACS", "PACS@host", "PACS@host:0", "ftp://x/y", "TOO-LONG-A-TITLE-FOR-AE@host:104"):
        with (
            pytest.raises(InvalidInput, match="AET@HOST:PORT"),
            running_node(tmp_path / "spool", "127.0.0.1:9", destination=(wrong,)),
        ):
            pass


def checked(command: list[str], content: bytes, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program on a document."""
    file = folder / "document.dcm"
    file.write_bytes(content)
    return subprocess.run([*command, str(file)], capture_output=True, text=True, check=False)


@pytest.fixture
def document(study: dict[str, object], tmp_path: Path, server: str, pacs: Pacs) -> Iterator[bytes]:
    with running_node(tmp_path / "spool", server, destination=(pacs.name,)) as node:
        store(node, write(tmp_path / "in", still(study, 1)))
        wait_for(lambda: pacs.documents())
        store(node, write(tmp_path / "in", still(study, 2)))
        wait_for(lambda: len(pacs.documents()) == 2)
    yield list(pacs.received.values())[-1][0]


@pytest.mark.skipif(not shutil.which("dsrdump"), reason="needs the Debian package dcmtk")
def test_dcmtk_reads_the_document(document: bytes, tmp_path: Path) -> None:
    done = checked(["dsrdump"], document, tmp_path)
    assert done.returncode == 0 and "Basic Text SR Document" in done.stdout, done.stderr


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="needs the Debian package dicom3tools")
def test_dciodvfy_finds_no_error_in_the_document(document: bytes, tmp_path: Path) -> None:
    done = checked(["dciodvfy"], document, tmp_path)
    assert "Error" not in done.stderr, done.stderr
    assert pydicom.dcmread(io.BytesIO(document)).PredecessorDocumentsSequence


def test_backoff_doubles_to_its_limit() -> None:
    now = 0.0
    pauses: list[float] = []
    backoff = Backoff(1.0, 8.0, lambda: now)
    for _ in range(6):
        backoff.failed(1)
        begun = now
        while not backoff.is_due(1):
            now += 0.1
        pauses.append(now - begun)
    expected: list[Any] = [1, 2, 4, 8, 8, 8]
    assert all(least - 0.2 <= pause <= 1.5 * least + 0.2 for pause, least in zip(pauses, expected, strict=True))
    backoff.forget(1)
    assert backoff.is_due(1)
