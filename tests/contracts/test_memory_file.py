"""Files in memory: what was written is read, nobody changes it while somebody reads, and nothing of it is left."""

from __future__ import annotations

import gc
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echovlm_edge.runtime.contracts.memory_file import MemoryFile, MemoryFileWriter
from echovlm_edge.runtime.contracts.request import ImageInput
from tests.support.open_memory_files import memory_files


@given(st.lists(st.binary(max_size=100)))
def test_it_holds_what_was_written(parts: list[bytes]) -> None:
    file = MemoryFile.of(parts)
    assert len(file) == len(b"".join(parts))
    if len(file):
        assert ImageInput(file).open().read() == b"".join(parts)
        assert file.open().read() == b"".join(parts), "opened again, it is not read from its start"


@pytest.mark.parametrize(
    "change",
    [
        lambda file: os.write(file, b"x"),
        lambda file: os.pwrite(file, b"x", 0),
        lambda file: os.ftruncate(file, 1),
        lambda file: os.ftruncate(file, 1 << 20),
        lambda file: mmap.mmap(file, 4, prot=mmap.PROT_READ | mmap.PROT_WRITE),
    ],
)
def test_nobody_can_change_it(change: Callable[[int], object]) -> None:
    file = MemoryFile.of([b"data"])
    with pytest.raises(PermissionError):
        change(file.descriptor)
    assert file.open().read() == b"data"


def test_what_could_still_be_changed_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="can still be changed"):
        MemoryFile(os.memfd_create("open", os.MFD_ALLOW_SEALING))
    with pytest.raises(OSError):
        MemoryFile(os.open(tmp_path, os.O_RDONLY))


def test_what_is_mapped_outlives_it() -> None:
    file = MemoryFile.of([b"data"])
    opened = file.open()
    file.close()
    file.close()
    assert opened.read() == b"data"


def test_nothing_of_it_is_left() -> None:
    before = memory_files()
    MemoryFile.of([b"data"])
    MemoryFile.of([b"data"]).close()
    unfinished = MemoryFileWriter()
    unfinished.write(b"data")
    unfinished.close()
    unfinished.close()
    MemoryFileWriter()
    finished = MemoryFileWriter()
    kept = finished.finish()
    finished.close()
    assert os.fstat(kept.descriptor).st_size == 0, "closing its writer closed it"
    kept.close()
    with pytest.raises(ValueError, match="can still be changed"):
        MemoryFile(os.memfd_create("image"))
    gc.collect()
    assert memory_files() <= before
