"""A wheelhouse has what its target needs, as the target reads the requirements, or says what cannot be had."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import wheelhouse
from deploy.closure import Target, needed
from echovlm_edge.runtime.contracts.errors import NotPossibleHere, UserError
from tests.support.wheels import tiny_wheel

OLD, NEW = Target("x86_64", "3.11"), Target("aarch64", "3.13")

# `python3 -m deploy.wheelhouse --help` in a clone, where nothing is installed.
IN_A_CLONE = """
import runpy, sys
folder = sys.argv.pop()
sys.path.insert(0, folder)
sys.argv.append("--help")
runpy.run_module("deploy.wheelhouse", run_name="__main__")
"""


def names(wheels: list[Path]) -> list[str]:
    return [wheel.name.partition("-")[0] for wheel in wheels]


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of the package index."""
    folder = tmp_path / "network"
    folder.mkdir()
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder), "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return folder


def ours(folder: Path, *requirements: str) -> Path:
    """A release's wheel for aarch64 with an extra `some`."""
    lines = [f"Requires-Dist: {line}" for line in requirements]
    tag = "py3-none-manylinux_2_34_aarch64"
    return tiny_wheel(folder, "echovlm_edge", tag, "Provides-Extra: some", *lines)


@pytest.mark.parametrize(
    ("condition", "old", "new"),
    [
        ('python_version < "3.12"', True, False),
        ('python_version >= "3.13"', False, True),
        ('platform_machine == "aarch64"', False, True),
        ('sys_platform == "win32"', False, False),
        ('python_full_version < "3.11.3"', True, False),  # Debian 12 has 3.11.2
        ('extra == "some" and python_version > "3.12"', False, True),
        ('extra == "another"', False, False),
    ],
)
def test_a_condition_is_read_as_the_target_reads_it(condition: str, old: bool, new: bool, tmp_path: Path) -> None:
    wheels = [ours(tmp_path, f"part ; {condition}"), tiny_wheel(tmp_path, "part")]
    for target, wanted in ((OLD, old), (NEW, new)):
        found, missing = needed(wheels, "echovlm-edge", ["some"], target)
        assert names(found) == ["echovlm_edge", *(["part"] if wanted else [])]
        assert missing == []
        assert needed(wheels[:1], "echovlm-edge", ["some"], target)[1] == (["part"] if wanted else [])


def test_requirements_of_requirements_and_of_their_extras_are_followed(tmp_path: Path) -> None:
    first = tiny_wheel(
        tmp_path, "first", "py3-none-any", "Provides-Extra: more", 'Requires-Dist: Last.One>=1; extra == "more"'
    )
    wheels = [ours(tmp_path, "first[more]"), first, tiny_wheel(tmp_path, "last_one"), tiny_wheel(tmp_path, "other")]
    found, missing = needed(wheels, "echovlm-edge", [], NEW)
    assert names(found) == ["echovlm_edge", "first", "last_one"] and not missing


def test_a_wheel_of_another_version_does_not_count(tmp_path: Path) -> None:
    wheels = [ours(tmp_path, "part>=2"), tiny_wheel(tmp_path, "part")]
    assert needed(wheels, "echovlm-edge", [], NEW)[1] == ["part>=2"]


def test_what_only_the_target_needs_is_collected_and_what_only_this_computer_needs_is_not(
    network: Path, tmp_path: Path
) -> None:
    tiny_wheel(network, "there")
    tiny_wheel(network, "here")
    wheel = ours(tmp_path, 'there; platform_machine == "aarch64"', 'here; platform_machine != "aarch64"')
    found = wheelhouse.collect(wheel, ["some"], "3.13", tmp_path / "house")
    assert names(found) == ["echovlm_edge", "there"] == names(sorted((tmp_path / "house").glob("*.whl")))
    locked = (tmp_path / "house" / wheelhouse.LOCK).read_text().splitlines()
    assert [line.partition(" --hash=sha256:")[0] for line in locked] == ["echovlm-edge==1.0", "there==1.0"]


def test_a_package_without_a_wheel_for_the_processor_is_named(network: Path, tmp_path: Path) -> None:
    tiny_wheel(network, "fast", "cp313-cp313-manylinux_2_28_x86_64")
    wheel = ours(tmp_path, 'fast; extra == "some"')
    with pytest.raises(NotPossibleHere, match=r"for aarch64 and Python 3\.13: .*fast.*Leave out the extra"):
        wheelhouse.collect(wheel, ["some"], "3.13", tmp_path / "house")


def test_an_extra_that_does_not_exist_is_refused(network: Path, tmp_path: Path) -> None:
    with pytest.raises(NotPossibleHere, match=r"has no extra sme: it has some"):
        wheelhouse.collect(ours(tmp_path), ["sme"], "3.13", tmp_path / "house")
    assert not (tmp_path / "house").exists()


@pytest.mark.parametrize("tag", ["py3-none-any", "py3-none-linux_x86_64"])  # as pip and make sdist build them
def test_what_is_no_wheel_of_a_release_is_refused(tag: str, tmp_path: Path) -> None:
    with pytest.raises(NotPossibleHere, match=r"is no wheel of a release, whose name has manylinux.*make release"):
        wheelhouse.target_of(tiny_wheel(tmp_path, tag=tag), "3.11")


def test_a_wheel_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotPossibleHere, match="does not exist: make release"):
        wheelhouse.target_of(tmp_path / "echovlm_edge-1.0-py3-none-manylinux_2_34_x86_64.whl", "3.11")


def test_a_wheel_that_needs_a_newer_system_than_a_target_may_have_is_refused(network: Path, tmp_path: Path) -> None:
    wheel = tiny_wheel(tmp_path, "echovlm_edge", "py3-none-manylinux_2_39_x86_64")
    with pytest.raises(NotPossibleHere, match=r"on this platform\. Give a release's wheel for glibc 2\.35 or older"):
        wheelhouse.collect(wheel, [], "3.12", tmp_path / "house")


def test_a_python_without_the_package_is_told_which_one_to_run() -> None:
    command = [sys.executable, "-I", "-S", "-c", IN_A_CLONE, str(wheelhouse.ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == UserError.exit_code
    assert re.fullmatch(
        r"error: .* lacks [\w-]+: in a clone, run make setup, and then \.venv/bin/python .*\.\n", done.stderr
    )
