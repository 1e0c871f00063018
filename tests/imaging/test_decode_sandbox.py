"""Decoding in another process: the same pictures, and nothing a file does harms more than its own request."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pydicom.data
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere, Stopped, Unavailable
from echovlm_edge.runtime.contracts.memory_file import MemoryFile
from echovlm_edge.runtime.contracts.request import FrameSelection, ImageInput, OriginalFrames
from echovlm_edge.runtime.imaging.decoder import LocalDecoder
from echovlm_edge.runtime.imaging.sandbox.sandbox import DecodeSandbox, SandboxLimits
from tests.support.decoding import RESOLUTION, asker, bomb, has_ended, read
from tests.support.dicom_files import png, saved, shipped, ultrasound
from tests.support.waiting import wait_for


@pytest.fixture(scope="module")
def sandbox() -> Iterator[DecodeSandbox]:
    sandbox = DecodeSandbox(SandboxLimits(processes=1, memory_bytes=1 << 30, seconds=5))
    sandbox.ready()
    yield sandbox
    sandbox.close()


def idle(sandbox: DecodeSandbox, count: int) -> list[psutil.Process]:
    """Its idle processes, once there are so many."""
    wait_for(lambda: len(sandbox.pids()) == count)
    return [psutil.Process(pid) for pid in sandbox.pids()]


def child_of(process: psutil.Process) -> psutil.Process:
    """The process of the file that it decodes now."""
    wait_for(lambda: bool(process.children()))
    return process.children()[0]


CINE = ImageInput(shipped("examples_ybr_color.dcm"), name="cine", selection=FrameSelection((0, 29)))


@pytest.mark.parametrize("image", [ImageInput(png(90, 61)), CINE, ImageInput(shipped("examples_palette.dcm"))])
def test_it_gives_what_decoding_here_gives(sandbox: DecodeSandbox, image: ImageInput) -> None:
    here, there = LocalDecoder(), sandbox
    assert there.measure(image, RESOLUTION) == here.measure(image, RESOLUTION)
    expected, frames = read(here, image), read(there, image)
    assert [(frame.name, frame.resolution, frame.origin) for frame in frames] == [
        (frame.name, frame.resolution, frame.origin) for frame in expected
    ]
    assert all(np.array_equal(ours.pixels, theirs.pixels) for ours, theirs in zip(frames, expected, strict=True))


def test_a_file_in_memory_is_read_like_its_bytes(sandbox: DecodeSandbox) -> None:
    for image in (ImageInput(png(90, 61)), CINE):
        assert isinstance(image.data, bytes)
        file = MemoryFile.of([image.data])
        frames = read(sandbox, replace(image, data=file))
        assert [frame.pixels.tobytes() for frame in frames] == outcome(sandbox, image)
        assert file.open().read() == image.data, "it was closed, or read away"


def test_files_leave_no_descriptors(sandbox: DecodeSandbox) -> None:
    def opened() -> list[int]:
        return [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in (os.getpid(), *sandbox.pids())]

    wait_for(lambda: len(sandbox.pids()) == 2)
    for _ in range(2):  # once in each of them
        read(sandbox, ImageInput(png(64, 64)))
    before = opened()
    for data in (png(64, 64), b"text", b"") * 4:
        outcome(sandbox, ImageInput(data))
        outcome(sandbox, ImageInput(MemoryFile.of([data])))
    assert sorted(opened()) == sorted(before)


def test_a_shortened_cine_has_the_originals_numbers(sandbox: DecodeSandbox) -> None:
    """`measure` believes as many frames as the file was shortened to."""
    three = saved(ultrasound(np.zeros((3, 40, 50, 3), np.uint8), NumberOfFrames=3))
    shortened = replace(CINE, data=three, original=OriginalFrames((7, 20, 90), 120))
    assert len(sandbox.measure(shortened, RESOLUTION).sizes) == 3
    assert [frame.name for frame in read(sandbox, shortened)] == [f"cine, frame {number}" for number in (7, 20, 90)]


def outcome(decoder: DecodeSandbox | LocalDecoder, image: ImageInput) -> object:
    try:
        return [frame.pixels.tobytes() for frame in read(decoder, image)]
    except InvalidInput as refused:
        return InvalidInput, str(refused)
    except NotPossibleHere as refused:
        return NotPossibleHere, str(refused)


def test_every_file_that_pydicom_ships_is_read_there_as_here(sandbox: DecodeSandbox) -> None:
    """All its transfer syntaxes and character sets: nothing that one of them needs is loaded after the confinement."""
    files = [file for file in Path(pydicom.data.__file__).parent.rglob("*.dcm") if file.stat().st_size < 1 << 20]
    assert len(files) > 50
    for file in files:
        image = ImageInput(file.read_bytes(), name=file.name)
        assert outcome(sandbox, image) == outcome(LocalDecoder(), image), file


def test_it_refuses_in_the_same_words(sandbox: DecodeSandbox) -> None:
    for image in (
        ImageInput(b"text"),
        ImageInput(b""),
        ImageInput(png(90, 61)[:200]),
        ImageInput(png(9000, 30)),
        ImageInput(CINE.data, selection=FrameSelection((99,))),
    ):
        assert outcome(sandbox, image) == outcome(LocalDecoder(), image)


def test_a_bomb_is_refused_from_its_header(sandbox: DecodeSandbox) -> None:
    with pytest.raises(InvalidInput, match="more than 64,000,000"):
        sandbox.measure(ImageInput(bomb(40_000, 40_000)), RESOLUTION)


def test_measuring_decodes_nothing() -> None:
    """The pixels of these two do not fit into the memory that measuring them takes."""
    small = DecodeSandbox(SandboxLimits(processes=1, memory_bytes=400 << 20))
    for image in (ImageInput(bomb(8_000, 8_000)), ImageInput(turned_bomb())):
        assert small.measure(image, RESOLUTION).sizes == ((980, 980),)
        with pytest.raises(InvalidInput, match="more memory than decoding may use"):
            read(small, image)
    assert read(small, ImageInput(png(64, 64))), "it did not continue"
    small.close()


def turned_bomb() -> bytes:
    """One that says behind its pixels how it is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    Image.new("L", (1, 1)).save(turned, "PNG", exif=exif)
    at = turned.getvalue().index(b"eXIf") - 4
    length = int.from_bytes(turned.getvalue()[at : at + 4], "big") + 12
    plain = bomb(8_000, 8_000)
    return plain[:-12] + turned.getvalue()[at : at + length] + plain[-12:]


def test_one_that_takes_too_long_is_refused() -> None:
    hasty = DecodeSandbox(SandboxLimits(processes=1, seconds=0.2))
    slow = ImageInput(bomb(8_000, 8_000))
    with pytest.raises(InvalidInput, match=r"takes more than 0\.2 s to decode"):
        hasty.decode(slow, LocalDecoder().measure(slow, RESOLUTION))
    wait_for(lambda: isinstance(outcome(hasty, ImageInput(png(64, 64))), list))  # a busy machine is slow at that too
    hasty.close()


def in_the_background(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """A call in a thread of its own, and what comes of it."""
    came: list[object] = []

    def run() -> None:
        try:
            came.append(work())
        except Exception as error:
            came.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, came


@pytest.fixture
def slow() -> ImageInput:
    """Takes seconds to decode."""
    return ImageInput(bomb(8_000, 8_000))


@pytest.fixture
def patient() -> Iterator[DecodeSandbox]:
    """Gives a file a minute."""
    sandbox = DecodeSandbox(SandboxLimits(processes=1, seconds=60))
    sandbox.ready()
    yield sandbox
    sandbox.close()


@pytest.mark.parametrize("whom", ["the process", "its child"])
def test_killed_from_outside_it_costs_nobody_anything(patient: DecodeSandbox, slow: ImageInput, whom: str) -> None:
    victims = idle(patient, 2)
    measured = LocalDecoder().measure(slow, RESOLUTION)
    call, came = in_the_background(lambda: patient.decode(slow, measured))
    wait_for(lambda: any(process.children() for process in victims))
    busy = next(process for process in victims if process.children())
    (child_of(busy) if whom == "its child" else busy).kill()
    call.join()
    assert isinstance(came[0], list) and came[0][0].pixels.shape == (980, 980, 3), came
    assert read(patient, ImageInput(png(64, 64)))


def test_stopped_from_outside_it_is_not_the_images_fault(slow: ImageInput) -> None:
    sandbox = DecodeSandbox(SandboxLimits(processes=1, seconds=1))
    victims = idle(sandbox, 2)
    for process in victims:
        process.suspend()
    with pytest.raises(Unavailable, match="was lost: try again"):
        sandbox.measure(ImageInput(png(64, 64)), RESOLUTION)
    sandbox.close()
    for process in victims:  # those that still are
        if process.is_running():
            process.kill()


def test_a_stopped_child_is_not_the_images_fault(slow: ImageInput) -> None:
    sandbox = DecodeSandbox(SandboxLimits(processes=1, seconds=2))
    processes = idle(sandbox, 2)
    call, came = in_the_background(lambda: sandbox.decode(slow, LocalDecoder().measure(slow, RESOLUTION)))
    wait_for(lambda: any(process.children() for process in processes))
    child_of(next(process for process in processes if process.children())).suspend()
    call.join()
    assert isinstance(came[0], Unavailable) and "try again" in str(came[0])
    assert read(sandbox, ImageInput(png(64, 64)))
    sandbox.close()


def test_killed_while_they_are_idle_others_take_their_place(patient: DecodeSandbox) -> None:
    for process in idle(patient, 2):
        process.kill()
        wait_for(partial(has_ended, process.pid))
    assert read(patient, ImageInput(png(64, 64)))
    assert len(idle(patient, 2)) == 2, "the lost ones were not replaced"


def test_one_that_nobody_wants_any_more_is_given_up(patient: DecodeSandbox, slow: ImageInput) -> None:
    before = {process.pid for process in idle(patient, 2)}
    gone = threading.Event()
    measured = LocalDecoder().measure(slow, RESOLUTION)
    calls = [in_the_background(lambda: patient.decode(slow, measured, asker(gone.is_set, "a"))) for _ in range(40)]
    wait_for(lambda: len(patient.pids()) == 1 and len(patient._waiting) == 39)
    gone.set()
    frames = read(patient, ImageInput(png(64, 64)), asker(lambda: False, "b"))
    assert frames and not any(psutil.Process(pid).children() for pid in patient.pids()), "it is still being decoded"
    for thread, came in calls:
        thread.join()
        assert isinstance(came[0], Stopped), came
    assert {process.pid for process in idle(patient, 2)} == before, "giving up costs a process"


def test_clients_take_turns(patient: DecodeSandbox, slow: ImageInput) -> None:
    """One client's many files do not keep another one's waiting until the last."""
    order: list[str] = []

    def one(client: str) -> None:
        patient.measure(ImageInput(png(64, 64)), RESOLUTION, asker(lambda: False, client))
        order.append(client)

    gone = threading.Event()
    measured = LocalDecoder().measure(slow, RESOLUTION)
    first, _ = in_the_background(lambda: patient.decode(slow, measured, asker(gone.is_set, "many")))
    wait_for(lambda: len(patient._waiting) == 0 and patient._busy == 1)
    threads = []
    for waiting, client in enumerate(["many"] * 8 + ["one"], 1):
        threads.append(in_the_background(lambda client=client: one(client))[0])  # type: ignore[misc]
        wait_for(lambda waiting=waiting: len(patient._waiting) == waiting)  # type: ignore[misc]
    gone.set()
    for thread in (first, *threads):
        thread.join()
    assert order.index("one") < 3, order


def test_one_clients_slow_files_leave_a_process_to_others(slow: ImageInput) -> None:
    sandbox = DecodeSandbox(SandboxLimits(processes=2, seconds=60))
    sandbox.ready()
    gone = threading.Event()
    measured = LocalDecoder().measure(slow, RESOLUTION)
    calls = [in_the_background(lambda: sandbox.decode(slow, measured, asker(gone.is_set, "many"))) for _ in range(4)]
    try:
        wait_for(lambda: sandbox._busy == 1 and len(sandbox._waiting) == 3)
        assert read(sandbox, ImageInput(png(64, 64)), asker(lambda: False, "other"))
        assert all(thread.is_alive() for thread, _ in calls), "it had to wait for one of the slow files"
    finally:
        gone.set()
        for thread, _ in calls:
            thread.join()
        sandbox.close()
    assert not sandbox._held


def test_a_call_that_is_gone_as_its_turn_comes_is_charged_nothing(patient: DecodeSandbox) -> None:
    wait_for(lambda: len(patient._idle) > 0)

    def gone() -> bool:
        wait_for(lambda: patient._busy == 1)  # a process has been handed to it meanwhile
        return True

    with patient._state:  # until it asks whether it is gone, there is none
        idle_ones = list(patient._idle)
        patient._idle.clear()
    call, came = in_the_background(lambda: patient.measure(ImageInput(png(64, 64)), RESOLUTION, asker(gone, "cart")))
    wait_for(lambda: len(patient._waiting) == 1)
    with patient._state:
        patient._idle.extend(idle_ones)
        patient._hand_out()
    call.join()
    assert patient._waiting._had.get("cart", 0.0) < 60, came


def test_it_can_write_nothing_and_leaves_no_core(sandbox: DecodeSandbox) -> None:
    for process in idle(sandbox, 2):
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        values = {line[:26].strip(): line[26:].split()[0] for line in limits.splitlines()}
        assert values["Max core file size"] == values["Max file size"] == "0"
        assert int(values["Max address space"]) == 1 << 30
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert "NoNewPrivs:\t1" in status and "CapEff:\t0000000000000000" in status


def test_it_ends_with_the_server_however_that_ends() -> None:
    program = (
        "import os, signal; from echovlm_edge.runtime.imaging.sandbox.sandbox import DecodeSandbox; "
        "s = DecodeSandbox(); s.ready(); print(*s.pids(), flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    for pid in map(int, done.stdout.split()):
        wait_for(partial(has_ended, pid))


def test_it_does_not_end_with_the_thread_that_first_asked() -> None:
    made: list[DecodeSandbox] = []

    def make() -> None:
        made.append(DecodeSandbox(SandboxLimits(processes=1)))
        made[0].ready()
        read(made[0], ImageInput(png(64, 64)))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    before = {process.pid for process in idle(made[0], 2)}
    read(made[0], ImageInput(png(64, 64)))
    assert {process.pid for process in idle(made[0], 2)} == before
    made[0].close()


def test_a_signal_to_the_whole_group_leaves_it_to_the_server_to_end(patient: DecodeSandbox) -> None:
    before = idle(patient, 2)
    for process in before:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(process.pid, number)
    assert read(patient, ImageInput(png(64, 64)))
    assert {process.pid for process in idle(patient, 2)} == {process.pid for process in before}


def test_too_little_memory_to_start_is_one_sentence() -> None:
    with pytest.raises(NotPossibleHere, match="memory limit too low"):
        DecodeSandbox(SandboxLimits(memory_bytes=16 << 20)).ready()


def test_no_descriptors_is_not_the_images_fault() -> None:
    """A server without a free descriptor cannot start a process: that is said, and it recovers."""
    program = """
import os, resource
from contextlib import suppress
from echovlm_edge.runtime.imaging.sandbox.sandbox import DecodeSandbox, SandboxLimits
from echovlm_edge.runtime.contracts.errors import Unavailable
from echovlm_edge.runtime.contracts.request import ImageInput
from tests.support.decoding import read
from tests.support.dicom_files import png
from tests.support.waiting import wait_for

picture = ImageInput(png(64, 64))
sandbox = DecodeSandbox(SandboxLimits(processes=1))
wait_for(lambda: len(sandbox.pids()) >= 2)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
taken = []
try:
    while True:
        taken.append(os.dup(0))
except OSError:
    pass
assert read(sandbox, picture), "the processes that are there do not continue"
for pid in sandbox.pids():
    os.kill(pid, 9)
    with suppress(ChildProcessError):  # without a descriptor, and left to the sandbox
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
try:
    read(sandbox, picture)  # the pipes of the two that were killed are too few for another one
except Unavailable as error:
    assert "can be started (Too many open files): try again" in str(error), error
else:
    raise AssertionError("a process was started without descriptors")
for descriptor in taken:
    os.close(descriptor)
wait_for(sandbox.pids)
assert read(sandbox, picture)
print("recovered")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    assert done.stdout == "recovered\n", done.stderr


def damaged(data: bytes) -> st.SearchStrategy[bytes]:
    """The file with some bytes changed, or cut short."""

    def change(edits: list[tuple[int, int]], length: int) -> bytes:
        changed = bytearray(data)
        for place, value in edits:
            changed[place % len(changed)] = value
        return bytes(changed[:length])

    edits = st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=8)
    return st.builds(change, edits, st.one_of(st.just(len(data)), st.integers(1, len(data))))


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(png(48, 40))).convert("RGB").save(file, "JPEG")
    return file.getvalue()


@given(
    st.one_of(damaged(png(48, 40)), damaged(jpeg()), damaged(shipped("examples_palette.dcm")), st.binary(max_size=300))
)
def test_any_bytes_get_a_picture_or_a_sentence(sandbox: DecodeSandbox, data: bytes) -> None:
    try:
        frames = read(sandbox, ImageInput(data))
    except InvalidInput as error:
        assert str(error).startswith("image 1 ")
        return
    assert all(frame.pixels.dtype == np.uint8 and frame.pixels.shape[2] == 3 for frame in frames)
