"""A release's parts that take seconds: its version is one, its bill of materials lists what is pinned, its lock file installs."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import release, wheelhouse
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from tests.support.wheels import tiny_wheel


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.3\n\n## 1.2.2\n")
    return tmp_path


def test_a_version_has_one_place(source: Path) -> None:
    assert release.check_version(source, ["v1.2.3", "seen"]) == "1.2.3"
    with pytest.raises(NotPossibleHere, match=r"the tag says 1.2.4 and pyproject.toml 1.2.3"):
        release.check_version(source, ["v1.2.4"])
    (source / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n")
    with pytest.raises(NotPossibleHere, match=r"CHANGELOG.md says Unreleased and pyproject.toml 1.2.3"):
        release.check_version(source, ["v1.2.3"])
    assert release.check_version(source, []) == "1.2.3", "a commit without a tag is no release"


def test_the_bill_of_materials_lists_what_is_pinned(tmp_path: Path) -> None:
    release.bill_of_materials(tmp_path / "one.json", "1700000000")
    listed = json.loads((tmp_path / "one.json").read_text())
    pinned = {line.partition("==")[0] for line in (release.ROOT / "constraints.txt").read_text().splitlines()}
    assert {part["name"] for part in listed["components"]} == pinned
    assert listed["metadata"].get("timestamp", "2023-11-14").startswith("2023-11-14"), "a build's own time"


@pytest.mark.parametrize("tool", [release, wheelhouse])
def test_what_is_there_is_not_mixed_with_a_release(
    tool: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "older.whl").touch()
    arguments = ["--output", str(tmp_path), *(["older.whl"] if tool is wheelhouse else [])]
    assert tool.main(arguments) == 2  # type: ignore[attr-defined]
    assert "is not empty" in capsys.readouterr().err


def test_a_wheelhouses_lock_installs_what_it_names_and_nothing_changed(tmp_path: Path) -> None:
    wheel = tiny_wheel(tmp_path)
    (tmp_path / wheelhouse.LOCK).write_text(wheelhouse.lock([wheel]))
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() in (tmp_path / wheelhouse.LOCK).read_text()
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--require-hashes",
        "--find-links",
        str(tmp_path),
    ]
    install += ["--target", str(tmp_path / "there"), "-r", str(tmp_path / wheelhouse.LOCK)]
    environment = {**os.environ, "PIP_CONFIG_FILE": os.devnull}
    subprocess.run(install, check=True, capture_output=True, env=environment)
    assert (tmp_path / "there" / "nothing_at_all.py").exists()
    with wheel.open("ab") as changed:
        changed.write(b"\0")
    refused = subprocess.run(install, check=False, capture_output=True, text=True, env=environment)
    assert refused.returncode and "DO NOT MATCH THE HASHES" in refused.stderr
