"""The command: its options, its door, and an operator's words."""

from __future__ import annotations

import json
import logging
import subprocess
from pathlib import Path

import pytest

from benchmarks import served
from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.dicom_node import command, status
from echovlm_edge.runtime.dicom_node.node import Node
from echovlm_edge.runtime.dicom_node.settings import NodeSettings
from tests.support.carts import Pacs, running_node, still, store, study_of, write
from tests.support.waiting import wait_for


def dicom(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    words = [served.script("echovlm-dicom"), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_a_printed_file_says_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECHOVLM_DICOM_DESTINATION", "PACS@h:104 /srv/out")
    assert command.main(["--spool", "/s", "--quiet-seconds", "7", "--print-config"]) == 0
    printed = capsys.readouterr().out
    file = tmp_path / "dicom.toml"
    file.write_text(printed)
    monkeypatch.delenv("ECHOVLM_DICOM_DESTINATION")
    assert command.main(["--config", str(file), "--print-config"]) == 0
    assert capsys.readouterr().out == printed
    assert 'destination = ["PACS@h:104", "/srv/out"]' in printed and "quiet_seconds = 7.0" in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--spool is missing"),
        (["--spool", "S"], "--destination is missing"),
        (["--spool", "S", "--quiet-seconds", "0"], "--quiet-seconds must be above 0"),
        (["--spool", "S", "--destination", "x/", "--listen", "0.0.0.0:0"], "can be reached by others"),
        (["--spool", "S", "--destination", "x/", "--tls-key", "k"], "belong together"),
        (["--spool", "S", "--destination", "x/", "x/"], "given twice"),
        (["--spool", "S", "--destination", "x/", "--ae-title", "LONGER-THAN-SIXTEEN"], "1 to 16 letters"),
        (["--spool", "S", "--destination", "x/", "--listen", "11112"], "is not HOST:PORT"),
        (["--spool", "S", "--destination", "x/", "--pdf", "--pdf-font", "/none"], "The font /none cannot be read"),
        (["send", "/none"], "/none cannot be read"),
        (["send", __file__], "is no DICOM file"),
        (["send", "/none", "--ae-title", "x" * 17], "1 to 16 letters"),
        (["send", "/none", "--to", "host"], "is not AET@HOST:PORT"),
        (["send", "/none", "--to", "PACS@host:99999"], "is not AET@HOST:PORT"),
        (["send", "/none", "--to", "PACS@no such host:104"], "is not AET@HOST:PORT"),
        (["--spool", "/dev/null/x", "--destination", "x/"], "The spool /dev/null/x cannot be used"),
        (["--spool", "S", "--destination", "x/", "--peers", "/none"], "The peers file /none cannot be read"),
        (["--spool", "S", "--destination", "x/", "--questions", "/none"], "The questions file /none cannot be read"),
        (["--spool", "S", "--destination", "x/", "--audit", "/none/a"], "The audit log /none/a cannot be written"),
    ],
)
def test_a_wrong_option_is_one_sentence(arguments: list[str], words: str, tmp_path: Path) -> None:
    given = [str(tmp_path / "spool") if word == "S" else word for word in arguments]
    done = dicom(*given)
    assert done.returncode == 2 and words in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_two_nodes_do_not_share_a_spool(tmp_path: Path) -> None:
    with running_node(tmp_path / "spool", "127.0.0.1:9", destination=(f"{tmp_path}/out",)):
        done = dicom("--spool", tmp_path / "spool", "--destination", f"{tmp_path}/out", "--listen", "127.0.0.1:0")
    assert done.returncode == 2 and "Another echovlm-dicom uses the spool" in done.stderr


def test_a_spool_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    import sqlite3

    from echovlm_edge.runtime.dicom_node.spool.spool import Spool

    Spool(tmp_path).close()
    with sqlite3.connect(tmp_path / "spool.db") as database:
        database.execute("PRAGMA user_version = 99")
    done = dicom("status", "--spool", tmp_path)
    assert done.returncode == 2 and "newer version" in done.stderr


def test_an_operator_completes_looks_and_sends_again(tmp_path: Path, server: str, pacs: Pacs) -> None:
    study = study_of()
    uid = str(study["StudyInstanceUID"])
    spool = tmp_path / "spool"
    with running_node(spool, server, destination=(pacs.name,), quiet_seconds=600) as node:
        files = write(tmp_path / "in", still(study, 1))
        done = dicom("send", *files, "--to", f"ECHOVLM@{node.address}", "--ae-title", "TRY")
        assert done.returncode == 0 and "1 of 1 instances" in done.stdout
        assert dicom("resend", "--spool", spool, uid).returncode == 2  # nothing has been written yet
        assert dicom("complete", "--spool", spool, "1").returncode == 0
        wait_for(lambda: node.spool.studies.find(uid).state == "delivered")
        table = dicom("status", "--spool", spool).stdout
        assert "delivered" in table and "TRY" in table and uid not in table
        (shown,) = json.loads(dicom("status", "--spool", spool, "--json").stdout)["studies"]
        assert (shown["uid"], shown["completed_by"], shown["owed"]) == (uid, "an operator's word", 0)
        assert dicom("resend", "--spool", spool, uid).returncode == 0
        wait_for(lambda: [len(contents) for contents in pacs.received.values()] == [2])
        assert "no study 77" in dicom("complete", "--spool", spool, "77").stderr


def test_a_failed_study_is_tried_again(tmp_path: Path, server: str, pacs: Pacs) -> None:
    study = study_of()
    damaged = still(study, 1)
    damaged.PixelData = damaged.PixelData[:9]
    with running_node(tmp_path / "spool", server, destination=(pacs.name,)) as node:
        store(node, write(tmp_path / "in", damaged))
        uid = str(study["StudyInstanceUID"])
        wait_for(lambda: node.spool.studies.find(uid).state == "failed")
        changed = node.spool.studies.find(uid).changed
        assert dicom("resend", "--spool", tmp_path / "spool", uid).returncode == 0
        wait_for(
            lambda: node.spool.studies.find(uid).state == "failed" and node.spool.studies.find(uid).changed > changed
        )


def test_no_spool_is_no_spool(tmp_path: Path) -> None:
    assert "is no spool" in dicom("status", "--spool", tmp_path).stderr


def test_what_a_state_does_not_allow_is_said(tmp_path: Path, server: str, pacs: Pacs) -> None:
    with running_node(tmp_path / "spool", server, destination=(pacs.name,)) as node:
        study = study_of()
        store(node, write(tmp_path / "in", still(study, 1)))
        uid = str(study["StudyInstanceUID"])
        wait_for(lambda: node.spool.studies.find(uid).state == "delivered")
        asked = status.complete_parser().parse_args(["--spool", str(tmp_path / "spool"), uid])
        with pytest.raises(InvalidInput, match="is delivered: it is not receiving"):
            status.run_on_studies("complete", asked)


def test_metrics_and_audit_say_what_happened(
    tmp_path: Path, server: str, pacs: Pacs, caplog: pytest.LogCaptureFixture
) -> None:
    from prometheus_client import CollectorRegistry, generate_latest

    from echovlm_edge.runtime.dicom_node.metrics import NodeMetrics

    caplog.set_level(logging.INFO)
    study, audit = study_of(), tmp_path / "audit"
    with running_node(tmp_path / "spool", server, destination=(pacs.name,), audit=audit) as node:
        files = write(tmp_path / "in", still(study, 1))
        store(node, files)
        store(node, files)
        wait_for(lambda: pacs.documents())
        wait_for(lambda: not node.spool.deliveries.owed())
        registry = CollectorRegistry()
        registry.register(NodeMetrics(node))
        text = generate_latest(registry).decode()
    for line in (
        'echovlm_dicom_instances_total{outcome="stored"} 1.0',
        'echovlm_dicom_instances_total{outcome="again"} 1.0',
        'echovlm_dicom_attempts_total{outcome="delivered"} 1.0',
        'echovlm_dicom_studies{state="delivered"} 1.0',
        "echovlm_dicom_owed 0.0",
    ):
        assert line in text
    events = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [event["event"] for event in events] == ["received", "received again", "delivered"]
    assert events[0]["instance"] == files[0].stem and events[0]["ae_title"] == "CART" and events[0]["time"]
    assert audit.stat().st_mode & 0o077 == 0
    logged = "\n".join(record.getMessage() + str(record.__dict__) for record in caplog.records)
    for secret in ("Sekret", "ZQX-4711", "ACC-99", str(study["StudyInstanceUID"])):
        assert secret not in logged


def test_a_delivered_study_is_emptied_in_its_time(tmp_path: Path, server: str, pacs: Pacs) -> None:
    study = study_of()
    with running_node(tmp_path / "spool", server, destination=(pacs.name,), keep_hours=0) as node:
        store(node, write(tmp_path / "in", still(study, 1)))
        uid = str(study["StudyInstanceUID"])
        wait_for(lambda: pacs.documents())
        wait_for(lambda: node.spool.studies.find(uid).state == "emptied")
        wait_for(lambda: not list(node.spool.arrivals.instances.iterdir()))
        assert node.spool.arrivals.used_bytes() == 0
        store(node, write(tmp_path / "in", still(study, 2)))  # a late one begins the next version
        wait_for(lambda: len(pacs.documents()) == 2)
    first, second = pacs.documents()
    reference = second.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert reference.ReferencedSOPInstanceUID == first.SOPInstanceUID


def test_a_full_spool_is_emptied_of_what_is_delivered(tmp_path: Path, server: str, pacs: Pacs) -> None:
    import numpy as np

    from tests.support.dicom_files import ultrasound

    studies = [study_of(), study_of()]
    noise = np.random.default_rng(0)
    files = [
        write(tmp_path / "in", ultrasound(noise.integers(0, 256, (800, 800), np.uint8), "MONOCHROME2", **study))
        for study in studies
    ]
    with running_node(tmp_path / "spool", server, destination=(pacs.name,), spool_mb=1) as node:
        assert store(node, files[0]) == {}
        wait_for(lambda: node.spool.studies.find(str(studies[0]["StudyInstanceUID"])).state == "delivered")
        assert store(node, files[1]) == {}
        assert node.spool.studies.find(str(studies[0]["StudyInstanceUID"])).state == "emptied"


def test_the_options_are_described_and_each_is_used() -> None:
    source = "\n".join(
        path.read_text() for path in Path(command.__file__).parent.rglob("*.py") if path.name != "settings.py"
    )
    for name, field in NodeSettings.model_fields.items():
        assert field.description
        assert f"chosen.{name}" in source, name
    assert Node
