"""A folder of bundles: what is installed becomes current, the one before it previous, and whatever interrupts that leaves a whole one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from echovlm_edge.runtime.bundle import command
from echovlm_edge.runtime.bundle.installed import PREVIOUS, install, linked, roll_back
from echovlm_edge.runtime.bundle.loads import Loads
from echovlm_edge.runtime.bundle.manifest import CURRENT, Bundle, bundle_at
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from tests.support import killed_changes
from tests.support.changed_bundles import numbered
from tests.support.signing import new_keys

OTHERS = 0 if os.environ.get("ECHOVLM_LONG") else 8  # moments of a change besides those at its links; 0 for all


@pytest.fixture
def bundles(golden_bundle: Path, tmp_path: Path) -> list[Path]:
    return [numbered(golden_bundle, tmp_path / f"from-usb-{number}", number) for number in range(3)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "bundles"


def ids(folder: Path) -> tuple[int, int | None]:
    """Which bundles are current and previous."""
    previous = linked(folder, PREVIOUS)
    current = int(Bundle(folder, verify=True).manifest.bundle_id, 16)
    return current, None if previous is None else int(Bundle(previous, verify=True).manifest.bundle_id, 16)


def test_what_is_installed_is_current_and_can_be_taken_back(bundles: list[Path], folder: Path) -> None:
    seen = []
    for bundle in bundles:
        install(bundle, folder)
        seen.append(ids(folder))
    assert seen == [(0, None), (1, 0), (2, 1)]
    roll_back(folder)
    assert ids(folder) == (1, 2)
    roll_back(folder)
    assert ids(folder) == (2, 1)
    install(bundles[2], folder)
    assert ids(folder) == (2, 1), "one that is current already changes nothing"
    assert not list(folder.glob(".*")) and not (folder / CURRENT).readlink().is_absolute()


def test_a_bundle_in_the_folder_is_not_copied(bundles: list[Path], folder: Path) -> None:
    inside = Path(shutil.copytree(bundles[0], folder / "mine"))
    assert install(inside, folder) == inside and sorted(path.name for path in folder.iterdir()) == [CURRENT, "mine"]


def test_a_damaged_copy_is_replaced_by_installing_it_again(bundles: list[Path], folder: Path) -> None:
    copy = install(bundles[0], folder)
    os.truncate(copy / "decoder.data", 5)
    assert install(bundles[0], folder) == copy and ids(folder) == (0, None)


def test_what_is_refused_changes_nothing(
    bundles: list[Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(bundles[0], folder)
    before = sorted(folder.iterdir()), ids(folder)
    keys = new_keys(tmp_path)
    for arguments, words in (
        ([tmp_path / "nothing"], "There is no bundle at"),
        ([bundles[1], "--require-signature", keys.public], "is not signed"),
    ):
        assert command.main(["install", str(arguments[0]), str(folder), *map(str, arguments[1:])]) == 2
        assert words in capsys.readouterr().err
    data = bundles[1] / "decoder.data"
    data.write_bytes(bytes(data.stat().st_size))
    assert command.main(["install", str(bundles[1]), str(folder)]) == 2
    assert f"{data} has changed since it was built" in capsys.readouterr().err
    assert command.main(["rollback", str(folder)]) == 2
    assert "There is no previous bundle" in capsys.readouterr().err
    assert command.main(["install", str(bundles[2]), str(bundles[0])]) == 2
    assert "is a bundle itself" in capsys.readouterr().err
    assert (sorted(folder.iterdir()), ids(folder)) == before


@pytest.mark.parametrize("name", (b"d\xfcr", b"a\nb", b"a\x1b[2Jb"))
@pytest.mark.parametrize("inside", (True, False))
def test_a_name_that_cannot_be_printed_is_refused(
    name: bytes, inside: bool, bundles: list[Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(bundles[0], folder)
    odd = bundles[1].rename((folder if inside else tmp_path) / os.fsdecode(name))
    before = sorted(folder.iterdir()), ids(folder)
    assert command.main(["install", str(odd), str(folder)]) == 2
    said = capsys.readouterr().err
    assert "characters that cannot be printed" in said and said.count("\n") == 1 and said[:-1].isprintable()
    assert (sorted(folder.iterdir()), ids(folder)) == before


def test_a_link_by_hand_to_a_name_that_is_not_utf_8_is_followed(bundles: list[Path], folder: Path) -> None:
    install(bundles[0], folder)
    odd = bundles[1].rename(folder / os.fsdecode(b"d\xfcr"))
    (folder / PREVIOUS).symlink_to(odd.name)
    program = [sys.executable, "-c", "from echovlm_edge.runtime.bundle.command import main; raise SystemExit(main())"]
    for says in (r"Current: d\udcfcr. Previous: from-usb-0-", "Current: from-usb-0-"):
        done = subprocess.run([*program, "rollback", folder], capture_output=True, check=False)
        assert done.returncode == 0 and done.stdout.decode().startswith(says), done.stderr


def test_relative_paths_mean_the_folders_that_they_lead_to(
    bundles: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(bundles[0], folder)
    install(bundles[1], folder)
    third = Path(shutil.copytree(bundles[2], folder / "third"))
    monkeypatch.chdir(third)
    install(Path(), Path(".."))
    assert ids(folder) == (2, 1) and (folder / CURRENT).readlink() == Path("third")
    inner = third / "inner"
    inner.mkdir()
    monkeypatch.chdir(inner)
    install(Path(".."), Path("../.."))
    assert ids(folder) == (2, 1) and (folder / CURRENT).readlink() == Path("third")
    for source in ("../..", str(folder), str(folder.parent)):
        assert command.main(["install", source, "../.."]) == 2
        assert "holds the folder of bundles" in capsys.readouterr().err
    assert ids(folder) == (2, 1)


def test_a_damaged_previous_bundle_is_not_returned_to(bundles: list[Path], folder: Path) -> None:
    first = install(bundles[0], folder)
    install(bundles[1], folder)
    os.truncate(first / "decoder.data", 5)
    with pytest.raises(NotPossibleHere, match=r"decoder.data has 5 bytes"):
        roll_back(folder)
    assert bundle_at(folder).name.startswith("from-usb-1-")


def test_a_signed_bundle_is_installed_with_its_signature(bundles: list[Path], folder: Path, tmp_path: Path) -> None:
    keys = new_keys(tmp_path)
    install(bundles[0], folder)
    assert command.main(["sign", str(bundles[0]), "--key", str(keys.secret)]) == 0
    for arguments in (
        [bundles[0], folder, "--require-signature", keys.public],
        ["--require-signature", keys.public, bundles[0], folder],
    ):
        assert command.main(["install", *map(str, arguments)]) == 0
    assert (bundle_at(folder) / "bundle.json.minisig").exists() and ids(folder) == (0, None)


def test_a_refused_bundle_does_not_take_the_place_of_the_good_one(bundles: list[Path], folder: Path) -> None:
    install(bundles[0], folder)
    refused = install(bundles[1], folder)
    Loads(folder).refuse(refused.name, "It does not write its golden tokens.")
    install(bundles[2], folder)
    assert ids(folder) == (2, 0)
    install(bundles[1], folder)
    assert ids(folder) == (1, 2) and Loads(folder).is_good(refused.name), "it was installed again: it gets another try"


def test_a_refused_first_bundle_leaves_none_to_return_to(
    bundles: list[Path], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Loads(folder).refuse(install(bundles[0], folder).name, "It is damaged.")
    assert command.main(["install", str(bundles[1]), str(folder)]) == 0
    assert ids(folder) == (1, None) and "Previous: none." in capsys.readouterr().out


def test_rolling_back_says_that_the_other_one_was_refused(
    bundles: list[Path], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(bundles[0], folder)
    Loads(folder).refuse(install(bundles[1], folder).name, "It is damaged.")
    assert command.main(["rollback", str(folder)]) == 0
    assert ids(folder) == (0, 1) and ", which was refused." in capsys.readouterr().out
    install(bundles[2], folder)
    assert ids(folder) == (2, 0)


def test_two_commands_do_not_change_one_folder_at_once(bundles: list[Path], folder: Path) -> None:
    install(bundles[0], folder)
    with subprocess.Popen(["flock", str(folder), "sh", "-c", "echo locked; read end"], stdin=-1, stdout=-1) as other:
        assert other.stdout and other.stdout.readline() == b"locked\n"
        with pytest.raises(NotPossibleHere, match="Another echovlm-bundle is changing"):
            install(bundles[1], folder)
        other.communicate(b"\n")
    install(bundles[1], folder)


def test_kill_9_at_any_moment_of_a_change_leaves_one_of_the_two_whole(bundles: list[Path], folder: Path) -> None:
    program = [sys.executable, killed_changes.__file__, str(folder), str(OTHERS), "37", *map(str, bundles)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    changes = {"install", "rollback", "refusal", "install-after-refusal", "rollback-after-refusal"}
    assert {line.split()[0] for line in lines} == changes and len(lines) > len(changes) * OTHERS
    assert [line for line in lines if not line.endswith(" whole")] == []
