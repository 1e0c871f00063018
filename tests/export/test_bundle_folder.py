"""A bundle's swap: whoever opens it meanwhile finds the old one or the new one, and nothing of the old one stays."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from echovlm_edge.export.bundle import bundle_folder as module
from echovlm_edge.export.bundle.bundle_folder import bundle_folder
from echovlm_edge.runtime.bundle.manifest import MANIFEST
from echovlm_edge.runtime.contracts.errors import NotPossibleHere


def write(output: Path, text: str) -> None:
    with bundle_folder(output, 0, text, replace=True) as folder:
        folder.write_text(MANIFEST, text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_reader_always_finds_a_bundle(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    if not module.exchange(tmp_path / "one", tmp_path / "other"):
        pytest.skip("this file system cannot exchange two folders")
    for name in ("one", "other"):
        (tmp_path / name).rmdir()
    output = tmp_path / "bundle"
    write(output, "0")
    manifest, absent, done = os.fspath(output / MANIFEST), list[str](), threading.Event()

    def read() -> None:
        while not done.is_set():
            if not os.access(manifest, os.R_OK):
                absent.append("absent")

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for number in range(1, 101):
            write(output, str(number))
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert not absent
    assert (output / MANIFEST).read_text() == "100" and names(tmp_path) == ["bundle"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_bundle_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool) -> None:
    if not exchanges:  # a file system that cannot, an NFS for example
        monkeypatch.setattr(module, "exchange", lambda one, other: False)
    output = tmp_path / "bundle"
    for text in ("old", "new"):
        write(output, text)
        assert (output / MANIFEST).read_text() == text and names(tmp_path) == ["bundle"]


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", "old")
    output = tmp_path / "bundle"
    output.symlink_to("elsewhere")
    for text in ("new", "newer"):
        write(output, text)
        assert (output / MANIFEST).read_text() == text and not output.is_symlink()
        assert (tmp_path / "elsewhere" / MANIFEST).read_text() == "old"
        assert names(tmp_path) == ["bundle", "elsewhere"]


@pytest.mark.parametrize(("inside", "output"), (("", "."), ("sub", ".."), ("link", "..")))
def test_the_bundle_around_the_working_folder_is_replaced(
    inside: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle"
    write(bundle, "old")
    (bundle / "sub").mkdir()
    (tmp_path / "link").symlink_to("bundle/sub")
    monkeypatch.chdir(tmp_path / "link" if inside == "link" else bundle / inside)
    write(Path(output), "new")
    assert (bundle / MANIFEST).read_text() == "new" and names(tmp_path) == ["bundle", "link"]


def test_a_folder_that_is_gone_is_no_place_for_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(NotPossibleHere, match="the working folder is gone"):
        write(Path("bundle"), "new")
