"""Room for what arrives: counted while it arrives, so that many instances together do not fill the disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from echovlm_edge.runtime.dicom_node.receiving.received_file import STEP, ReceivedFile, Room, TooMuch
from echovlm_edge.runtime.dicom_node.spool.arrivals import Arrivals
from echovlm_edge.runtime.dicom_node.spool.spool import Spool


@pytest.fixture
def arrivals(tmp_path: Path) -> Iterator[Arrivals]:
    spool = Spool(tmp_path / "spool")
    yield spool.arrivals
    spool.close()


def test_instances_that_arrive_together_share_the_room(arrivals: Arrivals) -> None:
    emptied: list[bool] = []
    room = Room(arrivals, 3 * STEP, 0, lambda: emptied.append(True))
    one, two = (ReceivedFile(arrivals.new_file(), room, 10 * STEP) for _ in range(2))
    for _ in range(2):
        one.append(bytes(STEP))
    two.append(bytes(STEP))
    assert not emptied
    with pytest.raises(OSError, match="full"):
        two.append(bytes(STEP))
    assert emptied, "what is delivered was emptied first"
    two.discard()
    two.discard()
    one.append(bytes(STEP))
    one.finish()
    assert one.path.stat().st_size == 3 * STEP
    one.discard()
    assert not list(arrivals.incoming.iterdir())
    room.take(3 * STEP)


def test_the_reserve_of_the_disk_stays_free(arrivals: Arrivals, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [10 * STEP]
    monkeypatch.setattr(arrivals, "free_bytes", lambda: free[0])
    room = Room(arrivals, 1 << 40, 8 * STEP, lambda: None)
    file = ReceivedFile(arrivals.new_file(), room, 1 << 40)
    file.append(bytes(STEP))
    free[0] = 8 * STEP
    with pytest.raises(OSError, match="full"):
        file.append(bytes(STEP))
    free[0] = 8 * STEP - 1
    with pytest.raises(OSError, match="full"):
        ReceivedFile(arrivals.new_file(), room, 1 << 40)
    file.discard()
    assert not list(arrivals.incoming.iterdir())


def test_the_end_of_an_instance_takes_room_too(arrivals: Arrivals) -> None:
    room = Room(arrivals, 100, 0, lambda: None)
    file = ReceivedFile(arrivals.new_file(), room, 1000)
    file.append(bytes(101))
    with pytest.raises(OSError, match="full"):
        file.finish()
    file.discard()


def test_an_instance_that_is_too_long_is_refused(arrivals: Arrivals) -> None:
    file = ReceivedFile(arrivals.new_file(), Room(arrivals, 1 << 40, 0, lambda: None), 100)
    file.append(bytes(100))
    with pytest.raises(TooMuch):
        file.append(b"x")
    file.discard()
