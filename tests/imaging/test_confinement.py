"""What a process that decodes may do: it tries, and the kernel refuses; and under all of it every encoding is still decoded."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import RLELossless

from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.request import FrameSelection, ImageInput
from echovlm_edge.runtime.formats.media_types import PICTURES
from echovlm_edge.runtime.imaging import video
from echovlm_edge.runtime.imaging.decoder import LocalDecoder
from echovlm_edge.runtime.imaging.dicom import frame_decoder
from echovlm_edge.runtime.imaging.sandbox import landlock, seccomp
from echovlm_edge.runtime.imaging.sandbox.confinement import DECODING, STARTING
from echovlm_edge.runtime.imaging.sandbox.samples import ENCODINGS, VIDEO_STREAMS, decodes, sample
from echovlm_edge.runtime.imaging.sandbox.sandbox import DecodeSandbox, SandboxLimits
from tests.support.decoding import read
from tests.support.dicom_files import png, shipped
from tests.support.video_files import KINDS, encoded, moving

# Prints what a process may do that is confined like a decoding process (`worker`) or like the process of a file (`file`).
PROBE = """
import ctypes, fcntl, json, os, signal, socket, sys
from pathlib import Path
from echovlm_edge.runtime.formats.media_types import PICTURES
from echovlm_edge.runtime.contracts.memory_file import MemoryFile
from echovlm_edge.runtime.imaging.sandbox import landlock, seccomp
from echovlm_edge.runtime.imaging.sandbox.confinement import DECODING, PR_SET_NO_NEW_PRIVS, STARTING, confine, confine_to_one_file

kind, user, secret, port = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
server = os.getpid()
if user:
    os.chown(secret, user, user)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
reading, writing = os.pipe()
file = MemoryFile.of([b"file"])
requests, _ = socket.socketpair()
worker = os.fork()

def attempts():
    yield "open", lambda: os.open("/etc/passwd", os.O_RDONLY)
    yield "read a file of the server's user", lambda: Path(secret).read_text()
    yield "list", lambda: os.listdir("/")
    yield "connect", lambda: socket.socket().connect(("127.0.0.1", port))
    yield "kill the server", lambda: os.kill(server, 0)
    yield "see the server's memory", lambda: os.open(f"/proc/{server}/mem", os.O_RDONLY)
    yield "change a file that it was given", lambda: os.write(file.descriptor, b"more")
    yield "shorten it", lambda: os.ftruncate(file.descriptor, 1)
    yield "unseal it", lambda: fcntl.fcntl(file.descriptor, fcntl.F_ADD_SEALS, 0)
    yield "control a descriptor", lambda: fcntl.fcntl(file.descriptor, fcntl.F_SETFL, os.O_NONBLOCK)
    yield "receive files", lambda: requests.recvmsg(1, 1, socket.MSG_DONTWAIT)
    yield "fork", fork

def fork():
    if os.fork() == 0:
        os._exit(0)

if worker == 0:
    os.close(reading)
    confined = None
    ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # only then the kernel lets everybody
    if kind == "landlock":
        landlock.give_up_everything()
    elif kind == "seccomp":
        seccomp.install((*DECODING, *STARTING))
    else:
        confined = confine(1 << 30, 65534)
    if kind == "file":
        starter, child = os.getpid(), os.fork()
        if child:
            os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0)
        confine_to_one_file(starter, "seccomp" in confined.holds)
    may = {}
    for name, attempt in attempts():
        try:
            attempt()
            may[name] = "yes"
        except OSError as error:
            may[name] = type(error).__name__
    os.write(writing, json.dumps({"may": may, "holds": confined and confined.holds}).encode())
    os._exit(0)
os.close(writing)
found = os.fdopen(reading).read()
os.waitpid(worker, 0)
print(found)
"""

needs_landlock = pytest.mark.skipif(landlock.version() == 0, reason="this kernel has no Landlock")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
NOT_ROOT = 1234


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """What a TLS key is: a file that the server's user alone may read, in a folder that all may enter."""
    file = tmp_path / "key.pem"
    file.write_text("secret")
    file.chmod(0o600)
    for folder in file.parents:
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    return file


def probed(kind: str, secret: Path, user: int = 0) -> dict[str, dict[str, str]]:
    """What is still possible under a confinement, beside a server of that user (0: who runs the test)."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        arguments = [kind, str(user), str(secret), str(server.getsockname()[1])]
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=False, env=environment
        )
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    found: dict[str, dict[str, str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("user", [0, pytest.param(NOT_ROOT, marks=needs_root)])
def test_the_process_of_a_file_can_do_nothing_but_answer(secret: Path, user: int) -> None:
    found = probed("file", secret, user)
    assert "seccomp" in found["holds"], "this kernel has no seccomp"
    assert found["may"].pop("change a file that it was given") in ("PermissionError", "OSError"), (
        "sealed, or limited to 0"
    )
    assert set(found["may"].values()) == {"PermissionError"}, found["may"]


@pytest.mark.parametrize("user", [0, pytest.param(NOT_ROOT, marks=needs_root)])
def test_what_starts_them_can_do_that_alone(secret: Path, user: int) -> None:
    may = probed("worker", secret, user)["may"]
    assert may.pop("receive files") == "BlockingIOError", "nothing has been sent"
    allowed = {name for name, came in may.items() if came == "yes"}
    assert allowed <= ({"fork", "kill the server"} if landlock.version() < 6 and user else {"fork"}), may


@needs_landlock
@pytest.mark.parametrize("user", [0, pytest.param(NOT_ROOT, marks=needs_root)])
def test_landlock_alone_keeps_files_and_memory(secret: Path, user: int) -> None:
    may = probed("landlock", secret, user)["may"]
    kept = {"open", "read a file of the server's user", "list", "see the server's memory"}
    kept |= {"connect"} if landlock.version() >= 4 else set()
    kept |= {"kill the server"} if landlock.version() >= 6 else set()
    assert {name: came for name, came in may.items() if name in kept} == dict.fromkeys(kept, "PermissionError")


def test_seccomp_alone_keeps_files_and_sockets(secret: Path) -> None:
    may = probed("seccomp", secret)["may"]
    assert {may[name] for name in ("open", "read a file of the server's user", "list", "connect")} == {
        "PermissionError"
    }


@needs_root
def test_where_root_serves_it_is_another_user(secret: Path) -> None:
    assert "own user" in probed("worker", secret)["holds"]
    assert "own user" not in probed("worker", secret, NOT_ROOT)["holds"], "it said what is not so"


def test_running_another_program_ends_it() -> None:
    program = (
        "import os; from echovlm_edge.runtime.imaging.sandbox.confinement import DECODING; "
        "from echovlm_edge.runtime.imaging.sandbox import seccomp; "
        "seccomp.install(DECODING); os.execv('/bin/true', ['true'])"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -31, "SIGSYS is what the kernel ends it with"


@pytest.fixture(scope="module")
def sandbox() -> DecodeSandbox:
    sandbox = DecodeSandbox(SandboxLimits(processes=1))
    sandbox.ready()
    return sandbox


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_is_decoded_inside(sandbox: DecodeSandbox, encoding: str) -> None:
    image = ImageInput(sample(encoding))
    (there,), (here,) = read(sandbox, image), read(LocalDecoder(), image)
    assert np.array_equal(there.pixels, here.pixels)


@pytest.mark.parametrize(
    "name",
    [
        "JPGExtended.dcm",  # twelve bits, which Pillow cannot
        "SC_rgb_jpeg_gdcm.dcm",  # lossless
        "MR_small_jpeg_ls_lossless.dcm",
        "examples_jpeg2k.dcm",
        "SC_rgb_rle_32bit.dcm",
        "examples_palette.dcm",
    ],
)
def test_real_files_are_decoded_inside(sandbox: DecodeSandbox, name: str) -> None:
    image = ImageInput(shipped(name))
    (there,), (here,) = read(sandbox, image), read(LocalDecoder(), image)
    assert np.array_equal(there.pixels, here.pixels)


@pytest.mark.parametrize("kind", KINDS)
def test_videos_are_decoded_inside(sandbox: DecodeSandbox, kind: str) -> None:
    image = ImageInput(encoded(kind, moving(15)), selection=FrameSelection(evenly_spaced=4))
    there, here = read(sandbox, image), read(LocalDecoder(), image)
    assert len(there) == 4
    assert all(np.array_equal(ours.pixels, theirs.pixels) for ours, theirs in zip(there, here, strict=True))


TIFFS = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "lzma", "group4")


@pytest.mark.parametrize("compression", TIFFS)
def test_pages_of_every_compression_are_decoded_inside(sandbox: DecodeSandbox, compression: str) -> None:
    """Their decoders are parts of one library; none of them is loaded late."""
    picture = Image.open(io.BytesIO(png(60, 50))).convert("1" if compression == "group4" else "RGB")
    file = io.BytesIO()
    picture.save(file, "TIFF", save_all=True, append_images=[picture], compression=compression)
    image = ImageInput(file.getvalue())
    (there,), (here,) = read(sandbox, image), read(LocalDecoder(), image)
    assert np.array_equal(there.pixels, here.pixels)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_are_decoded_inside(sandbox: DecodeSandbox, kind: str) -> None:
    frames = [Image.open(io.BytesIO(png(60, 50, seed))).convert("RGBA") for seed in range(5)]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    image = ImageInput(file.getvalue(), selection=FrameSelection(evenly_spaced=3))
    there, here = read(sandbox, image), read(LocalDecoder(), image)
    assert len(there) == 3
    assert all(np.array_equal(ours.pixels, theirs.pixels) for ours, theirs in zip(there, here, strict=True))


@pytest.mark.parametrize("encoding", [*PICTURES, *VIDEO_STREAMS, RLELossless, *frame_decoder.CODESTREAMS])
def test_a_decoder_that_does_not_load_is_not_the_files_fault(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise OSError("decoder not available")

    monkeypatch.setattr(frame_decoder, "_decode", missing)
    monkeypatch.setattr(Image.Image, "load", missing)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", missing)
    monkeypatch.setattr(video, "_shown", lambda *_: iter(()))
    assert not decodes(encoding)
    with pytest.raises(NotPossibleHere, match=r"^image 1 cannot be decoded by this server: it has no decoder for"):
        read(LocalDecoder(), ImageInput(sample(encoding)))


def test_an_encoding_that_nobody_here_decodes_is_not_damage(sandbox: DecodeSandbox) -> None:
    jpip = sample("1.2.840.10008.1.2.4.90").replace(b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.4.94")
    with pytest.raises(NotPossibleHere, match="has no decoder for JPIP"):
        read(sandbox, ImageInput(jpip))


def test_the_log_says_what_is_in_force(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        sandbox = DecodeSandbox(SandboxLimits(processes=1))
        sandbox.ready()
        sandbox.close()
    (line,) = [record.getMessage() for record in caplog.records if "confined" in record.getMessage()]
    confined, _, missing = line.partition("; not by: ")
    assert confined.startswith("image decoding is confined by: ")
    for name in ("own user", "no network", "no capabilities", "limits", "landlock", "seccomp"):
        assert (name in confined) != (name in missing), line
    assert ("own user" in confined) == (os.geteuid() == 0)
    assert ("landlock" in confined) == (landlock.version() > 0)


HEADERS = {0: Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), 1: Path("/usr/include/asm-generic/unistd.h")}


@pytest.mark.parametrize("column", HEADERS)
def test_system_calls_have_the_kernels_numbers(column: int) -> None:
    if not HEADERS[column].exists():
        pytest.skip(f"this machine has no {HEADERS[column]}")
    defined = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", HEADERS[column].read_text())
    kernels = {name: int(number) for name, number in defined}
    for name, numbers in seccomp.NUMBERS.items():
        assert numbers[column] == kernels.get(name), name
    assert {*DECODING, *STARTING, *seccomp.HOSTILE} == set(seccomp.NUMBERS)


@pytest.mark.parametrize("moment", ["before it is confined", "while it writes"])
def test_the_process_of_a_file_ends_with_the_one_that_started_it(moment: str) -> None:
    program = f"""
import os, signal, socket
from echovlm_edge.runtime.imaging.sandbox.confinement import confine_to_one_file
from echovlm_edge.runtime.imaging.sandbox.worker import Worker

starter = os.getpid()
requests, held_open = socket.socketpair()

def starter_ends():
    os.kill(starter, signal.SIGKILL)
    while os.getppid() == starter:
        pass

def confined():
    starter_ends()
    if {moment == "before it is confined"}:
        confine_to_one_file(starter, False)
        print("it continues", flush=True)

Worker(requests, os.dup(0), confined)._in_own_process(0, lambda: [bytes(1 << 20)], 1 << 21)
"""
    command = [sys.executable, "-c", program]
    # Ends once nobody holds stdout any more.
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL and done.stdout == "", done.stderr
