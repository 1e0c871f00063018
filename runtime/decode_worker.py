"""The process that decodes image files: it gives up what it could do harm with, then answers one file after another.

A message is two lengths (big-endian, 4 and 8 bytes), a JSON header and bytes. It gets {"media_type", "name", "indices",
"evenly_spaced", "crop_to_regions"} and the file; it answers {"frames": [[height, width, name], ...]} and their pixels, or
{"refused": sentence}.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import struct
import sys
from typing import Any, BinaryIO

LENGTHS = struct.Struct(">IQ")
# linux/prctl.h and linux/sched.h
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWIPC = 0x10000000, 0x40000000, 0x08000000
OPEN_FILES = 64


def write_message(stream: BinaryIO, header: dict[str, Any], *parts: Any) -> None:
    """Send one message; `parts` are bytes or buffers of them."""
    encoded = json.dumps(header).encode()
    stream.write(LENGTHS.pack(len(encoded), sum(memoryview(part).nbytes for part in parts)))
    stream.write(encoded)
    for part in parts:
        stream.write(part)
    stream.flush()


def read_exactly(stream: BinaryIO, count: int) -> bytes:
    """So many bytes.

    Raises:
        EOFError: the other end is gone.
    """
    found = stream.read(count)
    if len(found) != count:
        raise EOFError
    return found


def confine(memory_bytes: int) -> None:
    """Die with the parent; no core file, no new files, no more memory, no new rights, and no network where the kernel lets it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(PR_SET_DUMPABLE, 0)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWIPC)  # forbidden in some containers, which have their own
    for kind, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_AS, memory_bytes),
    ):
        _, hard = resource.getrlimit(kind)
        lower = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (lower, lower))


def serve(requests: BinaryIO, answers: BinaryIO, limits: dict[str, int]) -> None:
    """Decode until the other end is gone."""
    from echovlm_edge.runtime.errors import InvalidInput
    from echovlm_edge.runtime.image import ImageLimits, decode_image
    from echovlm_edge.runtime.request import FrameSelection, ImageInput

    write_message(answers, {"ready": True})
    while True:
        try:
            header_length, size = LENGTHS.unpack(read_exactly(requests, LENGTHS.size))
        except EOFError:
            return
        asked = json.loads(read_exactly(requests, header_length))
        name = asked["name"]
        try:
            selection = FrameSelection(tuple(asked["indices"]), asked["evenly_spaced"])
            data = read_exactly(requests, size)
            image = ImageInput(data, asked["media_type"], name, selection, asked["crop_to_regions"])
            frames = decode_image(image, ImageLimits(**limits))
            described = [[*frame.pixels.shape[:2], frame.name] for frame in frames]
            write_message(answers, {"frames": described}, *(frame.pixels.tobytes() for frame in frames))
        except InvalidInput as error:
            write_message(answers, {"refused": str(error)})
        except MemoryError:
            write_message(answers, {"refused": f"{name} takes more memory than decoding may use: send a smaller one."})


def main() -> None:
    """`python -m echovlm_edge.runtime.decode_worker MEMORY_BYTES LIMITS`, started by `decode_sandbox`."""
    confine(int(sys.argv[1]))
    # What libraries print belongs neither into the answers nor into the server's log.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    serve(sys.stdin.buffer, answers, json.loads(sys.argv[2]))


if __name__ == "__main__":
    main()
