"""The node's unit and sample files: systemd reads the unit and finds it tight, and the node takes the files."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from echovlm_edge.runtime.contracts.settings import as_toml, settings_of
from echovlm_edge.runtime.contracts.tasks import Language, Region
from echovlm_edge.runtime.dicom_node.receiving.peers import Peers
from echovlm_edge.runtime.dicom_node.reporting.questions import Facts, ask, read_questions
from echovlm_edge.runtime.dicom_node.settings import NodeSettings

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = DEPLOY / "echovlm-dicom.service"
MAX_EXPOSURE = 2.5  # of systemd's 10
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="this machine has no systemd-analyze"
)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a command that is there."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/echovlm/bin/echovlm-dicom", "/bin/true"))
    return copy


def analysed(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, check=False)


@needs_systemd
def test_systemd_reads_the_unit_without_complaint(unit: Path) -> None:
    done = analysed("verify", unit)
    assert unit.name not in done.stdout + done.stderr, done.stderr


@needs_systemd
def test_systemd_finds_the_unit_tight(unit: Path) -> None:
    done = analysed("security", "--offline=true", f"--threshold={int(MAX_EXPOSURE * 10)}", unit)
    assert done.returncode == 0, done.stdout


def test_the_sample_configuration_is_what_the_node_prints() -> None:
    file = DEPLOY / "dicom.toml"
    assert as_toml(settings_of(NodeSettings, file, {})) == file.read_text()
    assert "/etc/echovlm/dicom.toml" in UNIT.read_text()


def test_the_sample_peers_and_questions_are_read() -> None:
    peers = Peers(DEPLOY / "peers.toml")
    assert peers.admit("CART7", "10.1.2.7", ["cart7.radiology.example"])
    assert not peers.admit("CART7", "10.1.2.7", []) and not peers.admit(
        "CART7", "10.1.2.8", ["cart7.radiology.example"]
    )
    assert peers.admit("CART8", "10.1.3.200", [])
    rows = read_questions(DEPLOY / "questions.toml")
    facts = Facts(frozenset({"CART3"}), description=frozenset({"US MAMMA BDS."}))
    assert ask(facts, rows, Language.EN).region is Region.BREAST
    assert ask(Facts(frozenset({"CART-ZH-1"})), rows, Language.EN).language is Language.ZH
