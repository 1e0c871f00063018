"""Whatever goes wrong between a request's first byte and its answer's last one, nobody gets another one's picture."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from echovlm_edge.runtime.contracts.errors import InvalidInput, Stopped, Unavailable
from echovlm_edge.runtime.contracts.request import ImageInput, Resolution
from echovlm_edge.runtime.imaging.decoder import NOBODY, Asker
from echovlm_edge.runtime.imaging.image_file import Measured
from echovlm_edge.runtime.imaging.sandbox import process as decode_process
from echovlm_edge.runtime.imaging.sandbox.sandbox import DecodeSandbox, SandboxLimits
from echovlm_edge.runtime.imaging.sandbox.worker import ANSWERED, ASKED, LENGTH, asked_about
from tests.support.decoding import asker

PIXEL = Measured(Resolution(1, 1, 1), ((1, 1),))
ROOT = Path(__file__).parents[2]
PLACE = [0, 1, 1, 1, [0, 0, 1, 1], None, [], ["", "", None]]  # of a frame in its file
ANSWER_BYTES = (
    ANSWERED.size
    + LENGTH.size
    + len('{"frames": [[1, 1, "it", [0, 1, 1, 1, [0, 0, 1, 1], null, [], ["", "", null]]]]}')
    + 3
)


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[DecodeSandbox]:
    """One that starts the stand-in, which does what files tell it to."""
    monkeypatch.setattr(
        decode_process, "WORKER", (sys.executable, "-S", "-E", str(ROOT / "tests/support/cutting_worker.py"))
    )
    monkeypatch.setattr(decode_process, "POLL_MS", 1)
    sandbox = DecodeSandbox(SandboxLimits(processes=1))
    sandbox.ready()
    yield sandbox
    sandbox.close()


def pixel(sandbox: DecodeSandbox, data: bytes, asker: Asker = NOBODY) -> bytes:
    (frame,) = sandbox.decode(ImageInput(data), PIXEL, asker)
    return frame.pixels.tobytes()


def check_the_next(sandbox: DecodeSandbox) -> None:
    """Others' pictures are their own, from each of the processes."""
    for own in (b"abc", b"def", b"ghi"):
        assert pixel(sandbox, b"picture:" + own) == own


def test_cut_at_every_byte_of_the_answer(sandbox: DecodeSandbox) -> None:
    for at in range(ANSWER_BYTES):
        with pytest.raises(Unavailable, match="try again"):
            pixel(sandbox, b"answer:%d:EVI" % at)
        check_the_next(sandbox)
    assert pixel(sandbox, b"answer:%d:own" % ANSWER_BYTES) == b"own"


def test_cut_at_every_byte_of_the_request(sandbox: DecodeSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    header = asked_about(ImageInput(b""), PIXEL.resolution)
    request = ASKED.size + sum(map(len, decode_process.packed(header)))
    whole = dict(decode_process.ENVIRONMENT)
    for at in range(1, request + 1):
        monkeypatch.setattr(decode_process, "ENVIRONMENT", {**whole, "CUT_REQUEST": str(at)})
        process = decode_process.DecodeProcess(1 << 30, 1, sandbox._images)
        asked = decode_process.Request(2, header, b"cut:EVI", 1000, 5.0, bool)
        with pytest.raises(decode_process.Lost):
            process.ask(asked)
        assert not process.usable(), "it can be used again"
    check_the_next(sandbox)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit, ZeroDivisionError])
def test_whatever_the_caller_raises_at_any_byte_of_the_answer(
    sandbox: DecodeSandbox, error: type[BaseException]
) -> None:
    for at in range(0, ANSWER_BYTES, 1 if error is MemoryError else 7):
        polls = iter([False] * 2)

        def raising(polls: Iterator[bool] = polls) -> bool:
            for stopped in polls:
                return stopped
            raise error

        with pytest.raises(error):
            pixel(sandbox, b"stall:%d:EVI" % at, asker(raising))
        check_the_next(sandbox)


def test_one_that_is_gone_leaves_nothing_at_any_byte_of_the_answer(
    sandbox: DecodeSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_process, "GRACE_SECONDS", 0.01)
    for at in range(0, ANSWER_BYTES, 5):
        gone = threading.Event()
        threading.Timer(0.01, gone.set).start()
        with pytest.raises(Stopped):
            pixel(sandbox, b"stall:%d:EVI" % at, asker(gone.is_set))
        check_the_next(sandbox)


def test_an_answer_to_another_request_is_no_answer(sandbox: DecodeSandbox) -> None:
    with pytest.raises(Unavailable, match="try again"):
        pixel(sandbox, b"number:EVI")
    check_the_next(sandbox)


class Failing:
    """Raises at the n-th line that runs in a file."""

    def __init__(self, file: str, line: int, error: type[BaseException]) -> None:
        self.file, self.left, self.error = file, line, error

    def __call__(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        if frame.f_code.co_filename != self.file:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise self.error
        return self


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_an_error_at_any_line_leaves_nothing_behind(sandbox: DecodeSandbox, error: type[BaseException]) -> None:
    line, before = 0, sys.gettrace()
    while True:
        line += 1
        failing = Failing(decode_process.__file__, line, error)
        sys.settrace(failing)
        try:
            assert (
                pixel(sandbox, b"stall:9:EVI" if line % 2 else b"picture:own", asker(lambda gone=line % 4 == 1: gone))
                == b"own"
            )
        except (error, Stopped, Unavailable):
            pass
        finally:
            sys.settrace(before)
        check_the_next(sandbox)
        if failing.left > 0:
            assert line > 40
            return


ATTACK = """
import resource
import numpy as np
from PIL import Image
from echovlm_edge.runtime.imaging.sandbox.sandbox import DecodeSandbox, SandboxLimits
from echovlm_edge.runtime.imaging.sandbox.worker import ANSWERED, packed
from echovlm_edge.runtime.contracts.request import ImageInput
from tests.support.decoding import RESOLUTION, read
from tests.support.dicom_files import encode, png

SIDE = 980  # seen as it is: what the pixels spell comes through
evil = b"".join(packed({"frames": [[28, 28, "image 1", [0, 1, 28, 28, [0, 0, 28, 28], None, [], ["", "", None]]]]}, b"EVIL" * 588))
spelled = (ANSWERED.pack(0, 0, len(evil)) + evil) * 100
pixels = np.zeros(SIDE * SIDE * 3, np.uint8)
pixels[: len(spelled)] = np.frombuffer(spelled, np.uint8)
attack = ImageInput(encode(Image.fromarray(pixels.reshape(SIDE, SIDE, 3))))
others = [ImageInput(png(28, 56, seed)) for seed in range(6)]

sandbox = DecodeSandbox(SandboxLimits(processes=1))
sandbox.ready()
own = [read(sandbox, other)[0].pixels.tobytes() for other in others]
assert read(sandbox, attack)[0].pixels.tobytes().startswith(spelled)
measured = sandbox.measure(attack, RESOLUTION)
unlimited = resource.getrlimit(resource.RLIMIT_AS)
for _ in range(3):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), unlimited[1]))  # the answer has 3 MB
    try:
        sandbox.decode(attack, measured)
        print("read")
    except MemoryError:
        print("no memory")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, unlimited)
    for other, expected in zip(others, own):
        assert read(sandbox, other)[0].pixels.tobytes() == expected, "somebody got another one's picture"
"""


def test_a_picture_that_spells_an_answer_gets_nothing_of_anybodys() -> None:
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # nothing large comes from what was freed before
    done = subprocess.run(
        [sys.executable, "-c", ATTACK], capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "no memory" in done.stdout.splitlines(), "the server was not short of memory"


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\0\0\0\1",
        b"\xff\xff\xff\xff{}",
        b"\0\0\0\x02[]",
        b"\0\0\0\x02{}",
        b"\0\0\0\x0d" + b'{"frames": 1}',
        b"".join(decode_process.packed({"frames": [[-1, -1, "name", PLACE]]})),
        b"\0\0\xea\x60" + b"[" * 60_000,
        b"".join(decode_process.packed({"frames": [[1e9, 1, "x", PLACE]]})),
        b"".join(decode_process.packed({"frames": [[99999, 1, "x", PLACE]]})),
        b"".join(decode_process.packed({"frames": [[1, 1, "x", None]]}, b"EVI")),
        b"".join(decode_process.packed({"frames": [[1, 1, "x", [1, *PLACE[1:]]]]}, b"EVI")),
    ],
)
def test_a_process_that_was_taken_over_is_not_believed(
    sandbox: DecodeSandbox, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_process.DecodeProcess, "ask", lambda *_: memoryview(said))
    with pytest.raises(InvalidInput, match=r"(may be|is) damaged"):
        pixel(sandbox, b"picture:own")
    with pytest.raises(InvalidInput, match="may be damaged"):
        sandbox.measure(ImageInput(b"picture:own"), PIXEL.resolution)
