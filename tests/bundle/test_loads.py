"""Records of loads: a process that ends while it loads a bundle has crashed, one that still loads or was stopped has not."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from echovlm_edge.runtime.bundle.loads import LOADS, Loads
from echovlm_edge.runtime.contracts.errors import NotPossibleHere

NAME = "echovlm-5c1d09ab"
SECONDS = 60  # only a failing test waits this long


@pytest.fixture
def loads(tmp_path: Path) -> Loads:
    return Loads(tmp_path)


def in_a_child(work: Callable[[], None]) -> None:
    """Run in a process of its own, until it ends or kills itself."""
    if not (child := os.fork()):
        work()
        os._exit(0)
    os.waitpid(child, 0)


def crash(folder: Path, name: str = NAME) -> None:
    """Load a bundle in a process that the kernel kills."""

    def work() -> None:
        with Loads(folder).loading(name):
            os.kill(os.getpid(), signal.SIGKILL)

    in_a_child(work)


def test_a_process_that_is_killed_while_it_loads_has_crashed(loads: Loads, tmp_path: Path) -> None:
    for count in (1, 2):
        crash(tmp_path)
        assert loads.crashes(NAME) == count
    crash(tmp_path, NAME + "-2")
    assert loads.crashes(NAME) == 2 and loads.is_good("echovlm") and not loads.is_good(NAME)
    loads.clear(NAME)
    assert loads.is_good(NAME) and loads.crashes(NAME + "-2") == 1


def test_a_load_that_ends_has_not_crashed(loads: Loads, tmp_path: Path) -> None:
    with loads.loading(NAME):
        pass
    with pytest.raises(NotPossibleHere), loads.loading(NAME):
        raise NotPossibleHere("It is damaged.")
    assert loads.is_good(NAME) and not list((tmp_path / LOADS).iterdir())


def test_a_load_that_runs_has_not_crashed(loads: Loads, tmp_path: Path) -> None:
    with loads.loading(NAME):
        assert Loads(tmp_path).is_good(NAME)
        crash(tmp_path)
        assert Loads(tmp_path).crashes(NAME) == 1
        Loads(tmp_path).clear(NAME)
        (running,) = (tmp_path / LOADS).iterdir()
        in_a_child(lambda: Loads(tmp_path).clear(NAME))
        assert running.exists()


def test_after_a_stop_nothing_is_recorded(loads: Loads, tmp_path: Path) -> None:
    with loads.loading(NAME):
        loads.stop()
        assert not list((tmp_path / LOADS).iterdir())
        loads.refuse(NAME, "The decoding processes are gone.")
    with loads.loading(NAME):
        assert not list((tmp_path / LOADS).iterdir())
    assert loads.is_good(NAME)


def test_a_crash_of_another_version_does_not_count(loads: Loads, tmp_path: Path) -> None:
    crash(tmp_path)
    (record,) = (tmp_path / LOADS).iterdir()
    record.write_text("0.0.1")
    assert loads.is_good(NAME)
    loads.clear(NAME)
    assert not record.exists()


def test_a_refusal_stays_until_it_is_cleared(loads: Loads, tmp_path: Path) -> None:
    loads.refuse(NAME, "Its decoder is damaged: é.")
    assert Loads(tmp_path).refusal(NAME) == "Its decoder is damaged: é." and not loads.is_good(NAME)
    for lost in (b"", b"\xff"):  # a power failure before the disk had it
        (tmp_path / LOADS / f"{NAME}.refused").write_bytes(lost)
        assert not loads.is_good(NAME)
    loads.clear(NAME)
    assert loads.is_good(NAME)


def test_everybody_may_read_what_a_server_with_a_tight_umask_records(loads: Loads, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        (tmp_path / LOADS).mkdir()
        loads.refuse(NAME, "It is damaged.")
        with loads.loading(NAME):
            modes = {file.suffix[:8]: file.stat().st_mode & 0o777 for file in (tmp_path / LOADS).iterdir()}
    finally:
        os.umask(before)
    assert modes == {".refused": 0o644, ".loading": 0o644}


def test_where_records_cannot_be_written_bundles_are_loaded_without(
    loads: Loads, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / LOADS).write_bytes(b"")
    with loads.loading(NAME):
        loads.refuse(NAME, "It is damaged.")
    assert loads.is_good(NAME) and f"{tmp_path / LOADS} cannot be made (File exists)" in caplog.text
    loads.clear(NAME)


def test_a_record_that_cannot_be_deleted_is_named(loads: Loads, tmp_path: Path) -> None:
    (tmp_path / LOADS / f"{NAME}.refused").mkdir(parents=True)
    with pytest.raises(NotPossibleHere, match=rf"{NAME}\.refused cannot be deleted \(Is a directory\)"):
        loads.clear(NAME)


@pytest.mark.parametrize("kind", ("pipe", "link to a pipe", "folder"))
def test_a_record_that_is_no_file_is_ignored(kind: str, tmp_path: Path) -> None:
    (tmp_path / LOADS).mkdir()
    os.mkfifo(tmp_path / "pipe")
    odd = tmp_path / LOADS / f"{NAME}.loading-x"
    {"pipe": os.mkfifo, "folder": os.mkdir, "link to a pipe": lambda link: link.symlink_to("../pipe")}[kind](odd)
    program = """
import sys
from pathlib import Path
from echovlm_edge.runtime.bundle.loads import Loads
loads, name = Loads(Path(sys.argv[1])), sys.argv[2]
assert loads.is_good(name)
loads.clear(name)
with loads.loading(name):
    assert loads.is_good(name)
"""
    subprocess.run([sys.executable, "-c", program, tmp_path, NAME], check=True, timeout=SECONDS)


def test_a_pipe_as_a_refusal_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / LOADS).mkdir()
    for name in (f"{NAME}.refused", f".{NAME}.refused.partial"):
        os.mkfifo(tmp_path / LOADS / name)
    program = """
import sys
from pathlib import Path
from echovlm_edge.runtime.bundle.loads import Loads
loads, name = Loads(Path(sys.argv[1])), sys.argv[2]
assert loads.refusal(name) == "The reason cannot be read."
loads.refuse(name, "It is damaged.")
assert loads.refusal(name) == "It is damaged."
loads.clear(name)
assert loads.is_good(name)
"""
    subprocess.run([sys.executable, "-c", program, tmp_path, NAME], check=True, timeout=SECONDS)


def test_a_full_disk_leaves_no_record_and_no_open_file(
    loads: Loads, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, limits = len(list(Path("/proc/self/fd").iterdir())), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (0, limits[1])
    )  # a file is made, and cannot be written, as on a full disk
    try:
        for _ in range(2):
            with loads.loading(NAME):
                pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / LOADS).iterdir()) and len(list(Path("/proc/self/fd").iterdir())) == before
    assert f"{tmp_path / LOADS} cannot be written: File too large" in caplog.text


@pytest.mark.parametrize("other", (f"{NAME}.loading-b", f"{NAME}-2", f"{NAME}.loading-b.refused"))
def test_another_bundles_records_are_its_own(other: str, loads: Loads, tmp_path: Path) -> None:
    crash(tmp_path, other)
    loads.refuse(other, "It is damaged.")
    assert loads.is_good(NAME)
    loads.clear(NAME)
    assert loads.crashes(other) == 1 and loads.refusal(other) == "It is damaged."
    loads.clear(other)
    assert loads.is_good(other) and not list((tmp_path / LOADS).iterdir())
