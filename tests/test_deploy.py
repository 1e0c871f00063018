"""The systemd unit: systemd itself reads it, finds it tight, and its command line is one that the server takes."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from echovlm_edge.runtime.clients import ClientsFile
from echovlm_edge.runtime.serve_command import main as serve
from echovlm_edge.runtime.serve_settings import as_toml, read_settings

DEPLOY = Path(__file__).parents[1] / "deploy"
UNIT = DEPLOY / "echovlm-serve.service"
MAX_EXPOSURE = 2.5  # of systemd's 10; 2.1 when it was written

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="this machine has no systemd-analyze"
)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a command that is there."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/echovlm/bin/echovlm-serve", "/bin/true"))
    return copy


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, check=False)


@needs_systemd
def test_systemd_reads_it_without_complaint(unit: Path) -> None:
    done = analyze("verify", unit)
    assert done.returncode == 0 and UNIT.name not in done.stderr, done.stderr


@needs_systemd
def test_systemd_finds_it_tight(unit: Path) -> None:
    done = analyze("security", "--offline=true", "--no-pager", unit)
    if "Unknown option" in done.stderr or "unrecognized" in done.stderr:
        pytest.skip("this systemd cannot look at a unit offline")
    found = re.search(r"exposure level for .*: ([\d.]+)", done.stdout)
    assert found and float(found[1]) <= MAX_EXPOSURE, done.stdout[-400:]


def test_its_command_line_is_one_that_the_server_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = re.search(r"^ExecStart=(.*)$", UNIT.read_text(), re.MULTILINE)
    assert found
    command = found[1].replace("/etc/echovlm/serve.toml", str(DEPLOY / "serve.toml"))
    # The clients file is not here: it is what the server stumbles over, after all options were understood.
    assert serve(shlex.split(command)[1:]) == 2
    assert "clients file /etc/echovlm/clients.toml cannot be read" in capsys.readouterr().err


def test_the_configuration_file_has_every_option_as_the_server_explains_it() -> None:
    settings = read_settings(["--config", str(DEPLOY / "serve.toml")])
    assert settings and as_toml(settings) == (DEPLOY / "serve.toml").read_text(), (
        "write it anew: echovlm-serve --config deploy/serve.toml --print-config"
    )


def test_the_clients_file_to_begin_with_can_be_read() -> None:
    assert ClientsFile(DEPLOY / "clients.toml").find(None, ["workstation.radiology.example"]).name == "workstation"
