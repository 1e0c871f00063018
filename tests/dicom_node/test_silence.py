"""Who is silent and who waits for the node: a slow disk and a clock that is set end no association."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.transport import AssociationSocket

from echovlm_edge.runtime.dicom_node.receiving import silence
from echovlm_edge.runtime.dicom_node.receiving.received_file import ReceivedFile
from echovlm_edge.runtime.dicom_node.receiving.silence import Silence, silence_of
from echovlm_edge.runtime.dicom_node.spool.rows import Arrival
from tests.support.carts import running_node, still, store, study_of, write
from tests.support.waiting import wait_for


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the node's associations."""
    given = Clock()
    monkeypatch.setattr(silence, "Silence", lambda timeout, **more: Silence(timeout, given, **more))
    return given


def test_a_timer_stands_still_while_it_is_held() -> None:
    clock = Clock()
    timer = Silence(10.0, clock)
    assert not timer.expired
    timer.start()
    clock.now = 9.0
    assert timer.remaining == 1.0
    with timer.held():
        clock.now = 100.0
        with timer.held():
            assert not timer.expired
        assert not timer.expired
    clock.now = 109.0
    assert not timer.expired, "it starts from zero when nobody holds it"
    clock.now = 111.0
    assert timer.expired
    timer.restart()
    clock.now = 113.0
    timer.stop()
    clock.now = 1000.0
    assert timer.remaining == 8.0
    assert not Silence(None, clock).expired


def test_a_peer_whose_bytes_were_not_read_yet_is_not_silent() -> None:
    """The thread that reads them had no processor, for example."""
    ours, theirs = socket.socketpair()
    association = Association(AE(), "acceptor")
    association.dul.socket = AssociationSocket(association, client_socket=ours)
    clock = Clock()
    silence.measure_silence(association)
    timer = silence_of(association)
    timer._clock = clock
    timer.start()
    clock.now = 7200.0
    theirs.send(b"a PDU")
    assert not timer.expired
    ours.recv(100)
    assert timer.expired
    theirs.close()
    ours.close()
    assert timer.expired


def test_an_association_is_kept_while_its_instance_is_stored(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes two hours to store, where a minute of silence ends an association."""
    study = study_of()
    with running_node(tmp_path / "spool", "127.0.0.1:9", destination=(f"{tmp_path}/out",), quiet_seconds=600) as node:
        stored = node.spool.arrivals.store

        def slowly(arrival: Arrival) -> bool:
            clock.now += 7200.0
            return stored(arrival)

        monkeypatch.setattr(node.spool.arrivals, "store", slowly)
        assert store(node, write(tmp_path / "in", *(still(study, seed) for seed in range(3)))) == {}


def test_an_association_is_kept_while_a_piece_is_written(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that watches over the association has time to see each piece take two hours."""
    append, watched = ReceivedFile.append, threading.Event()

    def slowly(file: ReceivedFile, data: bytes, *, is_head: bool = False) -> None:
        clock.now += 7200.0
        asked = clock.now
        for _ in range(2):  # twice, as the first look may have begun before
            watched.clear()
            assert watched.wait(60) and clock.now == asked
        append(file, data, is_head=is_head)

    monkeypatch.setattr(ReceivedFile, "append", slowly)
    expired = Silence.expired.fget
    assert expired

    def seen(timer: Silence) -> bool:
        found = bool(expired(timer))
        watched.set()
        return found

    monkeypatch.setattr(Silence, "expired", property(seen))
    with running_node(tmp_path / "spool", "127.0.0.1:9", destination=(f"{tmp_path}/out",), quiet_seconds=600) as node:
        assert store(node, write(tmp_path / "in", still(study_of(), 1))) == {}


def test_a_silent_association_is_closed(clock: Clock, tmp_path: Path) -> None:
    with running_node(tmp_path / "spool", "127.0.0.1:9", destination=(f"{tmp_path}/out",), quiet_seconds=600) as node:
        entity, aborted = AE("CART"), threading.Event()
        entity.add_requested_context("1.2.840.10008.1.1")
        host, _, port = node.address.rpartition(":")
        held = entity.associate(
            host, int(port), ae_title="ECHOVLM", evt_handlers=[(evt.EVT_ABORTED, lambda event: aborted.set())]
        )
        assert held.send_c_echo().Status == 0
        clock.now += 59.0
        assert held.send_c_echo().Status == 0
        clock.now += 61.0
        assert aborted.wait(60)
        wait_for(lambda: node.listener.associations == 0)


def test_setting_the_machines_clock_ends_no_association(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_clock, days = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: set_clock() + 86400.0 * days[0])
    with running_node(tmp_path / "spool", "127.0.0.1:9", destination=(f"{tmp_path}/out",), quiet_seconds=600) as node:
        entity = AE("CART")
        entity.network_timeout = None  # the cart's own timer follows the clock, too
        entity.add_requested_context("1.2.840.10008.1.1")
        host, _, port = node.address.rpartition(":")
        held = entity.associate(host, int(port), ae_title="ECHOVLM")
        for day in (400.0, -400.0):
            days[0] = day
            for _ in range(3):  # the node's threads look at their timers between two answers
                assert held.send_c_echo().Status == 0
        held.release()
