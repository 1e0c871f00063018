"""Orthanc as the PACS: it receives the SR by C-STORE and STOW-RS is not needed; it finds it by study and shows its text."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.served import free_port, stop
from tests.support.carts import cine, running_node, still, store, study_of, write
from tests.support.waiting import wait_for

pytestmark = pytest.mark.skipif(not shutil.which("Orthanc"), reason="needs the Debian package orthanc")


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """A running Orthanc: the URL of its REST interface, and its DICOM port."""
    dicom, rest = free_port(), free_port()
    configuration = {
        "Name": "PACS",
        "StorageDirectory": str(tmp_path / "orthanc"),
        "IndexDirectory": str(tmp_path / "orthanc"),
        "DicomPort": dicom,
        "DicomAet": "ORTHANC",
        "HttpPort": rest,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomCheckCalledAet": True,
        "Plugins": [],
    }
    (tmp_path / "orthanc.json").write_text(json.dumps(configuration))
    with (tmp_path / "orthanc.log").open("w") as log:
        process = subprocess.Popen(["Orthanc", tmp_path / "orthanc.json"], stdout=log, stderr=log)
    url = f"http://127.0.0.1:{rest}"
    try:
        wait_for(lambda: answers(url))
        yield url, dicom
    finally:
        stop(process)


def answers(url: str) -> bool:
    try:
        return bool(asked(f"{url}/system"))
    except OSError:
        return False


def asked(url: str, question: dict[str, object] | None = None) -> Any:
    data = None if question is None else json.dumps(question).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=10) as answer:
        return json.loads(answer.read())


def test_orthanc_finds_the_report_by_its_study_and_shows_its_text(
    orthanc: tuple[str, int], tmp_path: Path, server: str
) -> None:
    url, port = orthanc
    study = study_of()
    uid = str(study["StudyInstanceUID"])
    stills = [still(study, seed) for seed in range(12)]
    files = write(tmp_path / "in", *stills, *(cine(study, 100 + seed) for seed in range(3)))
    with running_node(tmp_path / "spool", server, destination=(f"ORTHANC@127.0.0.1:{port}",)) as node:
        assert store(node, files) == {}
        wait_for(lambda: node.spool.studies.find(uid).state == "delivered")
        kept = node.spool.deliveries.records(node.spool.studies.find(uid))[-1]
    found = asked(f"{url}/tools/find", {"Level": "Instance", "Query": {"StudyInstanceUID": uid, "Modality": "SR"}})
    assert len(found) == 1
    tags = asked(f"{url}/instances/{found[0]}/simplified-tags")
    assert tags["PatientID"] == study["PatientID"] and tags["AccessionNumber"] == study["AccessionNumber"]
    text = json.dumps(tags["ContentSequence"])
    assert str(kept["request_id"]) in text and "15 images were received" in text
