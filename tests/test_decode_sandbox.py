"""Decoding in another process: the same pictures, and nothing a file does harms more than its own request."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from echovlm_edge.runtime.decode_sandbox import DecodeSandbox, SandboxLimits
from echovlm_edge.runtime.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.image import decode_image
from echovlm_edge.runtime.request import FrameSelection, ImageInput
from tests.dicom_files import png, shipped


@pytest.fixture(scope="module")
def sandbox() -> Iterator[DecodeSandbox]:
    sandbox = DecodeSandbox(SandboxLimits(processes=1, memory_bytes=1 << 30, seconds=5))
    yield sandbox
    sandbox.close()


def process(sandbox: DecodeSandbox) -> psutil.Process:
    """The one that is idle."""
    return psutil.Process(sandbox._idle.queue[0]._process.pid)


CINE = ImageInput(shipped("examples_ybr_color.dcm"), name="cine", selection=FrameSelection((0, 29)))


@pytest.mark.parametrize("image", [ImageInput(png(90, 61)), CINE, ImageInput(shipped("examples_palette.dcm"))])
def test_it_gives_what_decoding_here_gives(sandbox: DecodeSandbox, image: ImageInput) -> None:
    expected, frames = decode_image(image), sandbox(image)
    assert [frame.name for frame in frames] == [frame.name for frame in expected]
    assert all(np.array_equal(ours.pixels, theirs.pixels) for ours, theirs in zip(frames, expected, strict=True))


def test_it_refuses_in_the_same_words(sandbox: DecodeSandbox) -> None:
    for image in (
        ImageInput(b"text"),
        ImageInput(png(90, 61)[:200]),
        ImageInput(CINE.data, selection=FrameSelection((99,))),
    ):
        with pytest.raises(InvalidInput) as here:
            decode_image(image)
        with pytest.raises(InvalidInput) as there:
            sandbox(image)
        assert str(there.value) == str(here.value)


def bomb(width: int, height: int) -> bytes:
    """A PNG of so many white pixels, in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + width // 8)) for _ in range(height)) + packer.flush()
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_bomb_is_refused_from_its_header(sandbox: DecodeSandbox) -> None:
    sandbox(ImageInput(png(64, 64)))
    before = process(sandbox).memory_info().rss
    with pytest.raises(InvalidInput, match="more than 64,000,000"):
        sandbox(ImageInput(bomb(40_000, 40_000)))
    assert process(sandbox).memory_info().rss - before < 64 << 20


def test_one_that_takes_too_much_memory_is_refused(sandbox: DecodeSandbox) -> None:
    small = DecodeSandbox(SandboxLimits(processes=1, memory_bytes=400 << 20))
    with pytest.raises(InvalidInput, match="more memory than decoding may use"):
        small(ImageInput(bomb(8_000, 8_000)))  # within the limit of pixels: 192 MB as RGB, and copies of it
    assert small(ImageInput(png(64, 64))), "it did not go on"
    small.close()


def test_one_that_takes_too_long_is_refused() -> None:
    hasty = DecodeSandbox(SandboxLimits(processes=1, seconds=0.2))
    started = time.monotonic()
    with pytest.raises(InvalidInput, match=r"takes more than 0\.2 s to decode"):
        hasty(ImageInput(bomb(8_000, 8_000)))
    assert time.monotonic() - started < 2
    assert hasty(ImageInput(png(64, 64))), "it did not go on"
    hasty.close()


def test_killed_while_it_decodes_it_costs_that_one_request(sandbox: DecodeSandbox) -> None:
    sandbox(ImageInput(png(64, 64)))
    worker = sandbox._idle.queue[0]
    victim = worker._process.pid
    os.kill(victim, signal.SIGSTOP)

    threading.Timer(0.2, os.kill, (victim, signal.SIGKILL)).start()
    with pytest.raises(InvalidInput, match="decoding it crashed"):
        sandbox(ImageInput(png(64, 64)))
    assert sandbox(ImageInput(png(64, 64)))
    idle = sandbox._idle.queue[0]._process
    idle.kill()
    idle.wait()
    assert sandbox(ImageInput(png(64, 64)))


def test_it_can_write_nothing_and_leaves_no_core(sandbox: DecodeSandbox) -> None:
    sandbox(ImageInput(png(64, 64)))
    limits = Path(f"/proc/{process(sandbox).pid}/limits").read_text()
    values = {line[:26].strip(): line[26:].split()[0] for line in limits.splitlines()}
    assert values["Max core file size"] == values["Max file size"] == "0"
    assert int(values["Max address space"]) == 1 << 30
    status = Path(f"/proc/{process(sandbox).pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status


def test_it_ends_with_the_server_however_that_ends() -> None:
    program = (
        "import os, signal; from echovlm_edge.runtime.decode_sandbox import DecodeSandbox; "
        "s = DecodeSandbox(); print(s._idle.queue[0]._process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    worker = int(done.stdout)
    deadline = time.monotonic() + 5
    while psutil.pid_exists(worker) and psutil.Process(worker).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the process outlived the server"
        time.sleep(0.05)


def test_too_little_memory_to_start_is_one_sentence() -> None:
    with pytest.raises(NotPossibleHere, match="memory limit too low"):
        DecodeSandbox(SandboxLimits(memory_bytes=16 << 20))


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
        frames = sandbox(ImageInput(data))
    except InvalidInput as error:
        assert str(error).startswith("image 1 ")
        return
    assert all(frame.pixels.dtype == np.uint8 and frame.pixels.shape[2] == 3 for frame in frames)
