"""The process in which image files are decoded. It loads every decoder, confines itself, and then starts a process for each file,
which is confined further and never used for another file: whatever a hostile file does to it ends with it.

It never parses what it passes on. A message to it is `ASKED` and a body with the request's parameters; the file's descriptor comes
with the first byte. A message that cancels the request of that number has neither. It answers with `ANSWERED` and what the file's
process wrote. Both bodies are a length of four bytes and JSON; in an answer, pixels follow. The number is the request's, so that no
answer is mistaken for another's.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.contracts.memory_file import MemoryFile
from echovlm_edge.runtime.contracts.request import FrameSelection, ImageInput, OriginalFrames, Resolution
from echovlm_edge.runtime.imaging.image_file import ImageLimits, decode_image, measure_image
from echovlm_edge.runtime.imaging.preprocess import fit
from echovlm_edge.runtime.imaging.sandbox.confinement import confine, confine_to_one_file
from echovlm_edge.runtime.imaging.sandbox.samples import ENCODINGS, decodes, load_decoders, sample
from echovlm_edge.runtime.imaging.sandbox.sources import described
from echovlm_edge.runtime.resources.thread_priority import lower_thread_priority

ASKED = struct.Struct(">QBQQ")  # the request's number, its kind, bytes of the body, the most bytes of the answer
ANSWERED = struct.Struct(">QiQ")  # the request's number, how the file's process ended, bytes of what it wrote
LENGTH = struct.Struct(">I")
READY, MEASURE, DECODE, UNWANTED = range(4)
# How the file's process ended: 0, a signal's number as a negative one, or
OUT_OF_MEMORY, TOO_MUCH_WRITTEN, FAILED = 3, 4, 5
EXIT_POLL_MS = 1  # between two polls for the end of a process that has closed its pipe
PIECE_BYTES = 1 << 20


def packed(header: dict[str, Any], *parts: Any) -> list[bytes]:
    """Pack a header as a length and JSON, followed by the `parts`, bytes or buffers."""
    encoded = json.dumps(header).encode()
    return [LENGTH.pack(len(encoded)), encoded, *parts]


def unpacked(body: memoryview) -> tuple[Any, memoryview]:
    """Split a body into its JSON and the bytes that follow.

    Raises:
        ValueError: the body has another form.
    """
    if len(body) < LENGTH.size:
        raise ValueError("too short")
    end = LENGTH.size + LENGTH.unpack(body[: LENGTH.size])[0]
    return json.loads(bytes(body[LENGTH.size : end])), body[end:]


def asked_about(image: ImageInput, resolution: Resolution) -> dict[str, Any]:
    """Make the JSON parameters that go with a file."""
    return {
        "name": image.name,
        "media_type": image.media_type,
        "indices": image.selection.indices,
        "evenly_spaced": image.selection.evenly_spaced,
        "crop_to_regions": image.crop_to_regions,
        "original": image.original and (image.original.numbers, image.original.count),
        "resolution": resolution,
    }


def main() -> None:
    """Run `python -m echovlm_edge.runtime.imaging.sandbox.worker MEMORY_BYTES USER LIMITS`, which `process` starts."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a terminal or systemd signals the whole group
        signal.signal(number, signal.SIG_IGN)  # this ends when the server does
    lower_thread_priority()  # so that decoding does not delay refusals
    memory_bytes, user, limits = int(sys.argv[1]), int(sys.argv[2]), ImageLimits(**json.loads(sys.argv[3]))
    # What libraries print must go neither into the answers nor into the server's log.
    requests, answers, nowhere = socket.socket(fileno=os.dup(0)), os.dup(1), os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    load_decoders()
    _rehearse(limits)
    if int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() > memory_bytes:
        sys.exit(OUT_OF_MEMORY)
    confinement = confine(memory_bytes, user)
    gc.collect()
    gc.freeze()  # the processes of files share this memory as long as nobody writes to it
    worker = Worker(requests, answers, partial(confine_to_one_file, os.getpid(), "seccomp" in confinement.holds))
    undecodable = worker.undecodable()
    worker.answer(
        READY, 0, b"".join(packed({"holds": confinement.holds, "lacks": confinement.lacks, "undecodable": undecodable}))
    )
    worker.serve(limits)


@dataclass(frozen=True)
class Asked:
    """A message's head.

    Attributes:
        number: the request's number.
        kind: the request's kind.
        size: bytes of the body.
        most: the most bytes of the answer.
        files: descriptors that came with the message.
    """

    number: int
    kind: int
    size: int
    most: int
    files: tuple[int, ...]


class Worker:
    """Starts a process for each requested file, and passes on what that process writes."""

    def __init__(self, requests: socket.socket, answers: int, confined: Callable[[], None]) -> None:
        """Read from the Unix socket `requests`, and write to the descriptor `answers`.

        `confined` is called in a file's process before it reads the file.
        """
        self._requests, self._answers, self._confined = requests, answers, confined

    def serve(self, limits: ImageLimits) -> None:
        """Answer requests until the server is gone."""
        while (asked := self._next()) is not None:
            if asked.kind == UNWANTED:  # the answer had been sent already
                continue
            body = self._read(asked.size)
            (file,) = asked.files
            work = partial(answer_of, asked.kind, body, file, limits)
            ended, written = self._in_own_process(asked.number, work, asked.most)
            os.close(file)
            self.answer(asked.number, ended, written)

    def answer(self, number: int, ended: int, written: bytes | bytearray) -> None:
        """Send an answer."""
        _write(self._answers, ANSWERED.pack(number, ended, len(written)))
        _write(self._answers, written)

    def undecodable(self) -> list[str]:
        """List the encodings that cannot be decoded under the confinement."""
        work = lambda: [json.dumps([encoding for encoding in ENCODINGS if not decodes(encoding)]).encode()]  # noqa: E731
        ended, written = self._in_own_process(0, work, PIECE_BYTES)
        if ended:  # it can do nothing at all: there is too little memory, or the confinement does not fit this system
            os._exit(FAILED)
        found: list[str] = json.loads(written)
        return found

    def _next(self) -> Asked | None:
        head, files, _, _ = socket.recv_fds(self._requests, ASKED.size, 1)
        if not head:
            return None
        number, kind, size, most = ASKED.unpack(head + self._read(ASKED.size - len(head)))
        return Asked(number, kind, size, most, tuple(files))

    def _read(self, count: int) -> bytearray:
        """Read `count` bytes; where the server is gone, this process ends."""
        found = bytearray(count)
        view, at = memoryview(found), 0
        while at < count:
            got = os.readv(self._requests.fileno(), [view[at:]])
            if got == 0:
                os._exit(0)
            at += got
        return found

    def _in_own_process(self, number: int, work: Callable[[], list[bytes]], most: int) -> tuple[int, bytearray]:
        """Run `work` in a process of its own; returns how it ended and what it wrote. A cancelled request's process is killed."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            self._child(work, reading, writing)
        os.close(writing)
        try:
            return self._followed(child, reading, number, most)
        finally:
            os.close(reading)

    def _child(self, work: Callable[[], list[bytes]], reading: int, writing: int) -> None:
        ended = FAILED
        try:
            self._requests.close()
            os.close(self._answers)
            os.close(reading)  # or a write would wait for this process itself where the other one is gone
            self._confined()
            for part in work():
                _write(writing, part)
            ended = 0
        except MemoryError:
            ended = OUT_OF_MEMORY
        finally:
            os._exit(ended)  # whatever was raised: nothing of this process is used again

    def _followed(self, child: int, reading: int, number: int, most: int) -> tuple[int, bytearray]:
        written, ended, open_ = bytearray(), 0, True
        poll = select.poll()
        poll.register(self._requests, select.POLLIN)
        poll.register(reading, select.POLLIN)
        while True:
            events = dict(poll.poll(None if open_ else EXIT_POLL_MS))
            if self._requests.fileno() in events and self._taken_back(number):
                ended = _stopped(child) or -signal.SIGKILL
                os.kill(child, signal.SIGKILL)
            if reading in events:
                piece = os.read(reading, PIECE_BYTES)
                written += piece
                if len(written) > most:
                    ended, written = TOO_MUCH_WRITTEN, bytearray()
                    os.kill(child, signal.SIGKILL)
                elif not piece:
                    poll.unregister(reading)
                    open_ = False
            if not open_ and (found := os.waitpid(child, os.WNOHANG))[0]:
                ended = ended or os.waitstatus_to_exitcode(found[1])
                return ended, written if ended == 0 else bytearray()

    def _taken_back(self, number: int) -> bool:
        """Check whether the running request was cancelled. Where the server is gone, this process ends, and its child with it."""
        asked = self._next()
        if asked is None:
            os._exit(0)
        return (asked.number, asked.kind) == (number, UNWANTED)


def answer_of(kind: int, body: bytearray, file: int, limits: ImageLimits) -> list[bytes]:
    """Make the answer about the file of a descriptor: its sizes and origin's digests, or its resized pixels, or a refusal."""
    asked, _ = unpacked(memoryview(body))
    selection = FrameSelection(tuple(asked["indices"]), asked["evenly_spaced"])
    original = OriginalFrames(tuple(asked["original"][0]), asked["original"][1]) if asked["original"] else None
    about = asked["media_type"], asked["name"], selection, asked["crop_to_regions"], original
    image = ImageInput(MemoryFile(file), *about)
    resolution = Resolution(*asked["resolution"])
    try:
        if kind == MEASURE:
            measured = measure_image(image, resolution, limits, bytes.fromhex(asked["key"]))
            origin = {"patient": measured.origin.patient.hex(), "study": measured.origin.study.hex()}
            return packed({"sizes": measured.sizes, **origin})
        frames = decode_image(image, limits, partial(fit, settings=resolution, name=image.name))
        frame_headers = [
            [*frame.pixels.shape[:2], frame.name, described(frame.source) if frame.source else None] for frame in frames
        ]
        return packed({"frames": frame_headers}, *(frame.pixels.tobytes() for frame in frames))
    except InvalidInput as error:
        return packed({"refused": str(error)})
    except NotPossibleHere as error:
        return packed({"not_possible": str(error)})


def _rehearse(limits: ImageLimits) -> None:
    """Answer about a file of every encoding, so that everything that is loaded lazily is loaded now."""
    wanted = asked_about(ImageInput(b"", name=""), Resolution(28, 784, 784))
    request = bytearray(b"".join(packed({**wanted, "key": "00"})))
    for encoding in ENCODINGS:
        file = MemoryFile.of([sample(encoding)])
        for kind in (MEASURE, DECODE):
            with suppress(Exception):  # `undecodable` says which
                answer_of(kind, request, os.dup(file.descriptor), limits)


def _stopped(child: int) -> int:
    """-SIGSTOP where somebody has stopped the process, so that its time says nothing about the file."""
    return -signal.SIGSTOP if os.waitid(os.P_PID, child, os.WSTOPPED | os.WNOHANG) else 0


def _write(descriptor: int, part: bytes | bytearray) -> None:
    view, at = memoryview(part).cast("B"), 0
    while at < len(view):
        at += os.write(descriptor, view[at:])


if __name__ == "__main__":
    main()
