"""A stand-in for `decode_worker` that starts immediately and does what its file says: exit, stall or lie at any byte.

The last three bytes of a file are its picture's only pixel. What stands before them:
    request:N:  ends after N bytes of the request
    answer:N:   ends after N bytes of the answer
    stall:N:    stalls after N bytes of the answer; the rest of it comes before the answer to the next request
    number:     answers with another number than the request's
"""

import json
import os
import socket
import struct

ASKED, ANSWERED, LENGTH = struct.Struct(">QBQQ"), struct.Struct(">QiQ"), struct.Struct(">I")
UNWANTED = 3


def packed(header: object, pixels: bytes = b"") -> bytes:
    encoded = json.dumps(header).encode()
    return LENGTH.pack(len(encoded)) + encoded + pixels


def read(count: int) -> bytes:
    found = b""
    while len(found) < count:
        piece = os.read(0, count - len(found))
        if not piece:
            os._exit(0)
        found += piece
    return found


def main() -> None:
    ready = packed({"holds": [], "lacks": [], "undecodable": []})
    os.write(1, ANSWERED.pack(0, 0, len(ready)) + ready)
    rest = b""
    requests = socket.socket(fileno=0)
    cut = int(os.environ.get("CUT_REQUEST", "0"))
    while True:
        if cut:
            read(cut)
            os._exit(0)
        head, files, _, _ = socket.recv_fds(requests, ASKED.size, 1)
        if not head:
            os._exit(0)
        number, kind, size, _ = ASKED.unpack(head + read(ASKED.size - len(head)))
        if kind == UNWANTED:
            continue
        read(size)
        file = os.pread(files[0], 1 << 20, 0)
        os.close(files[0])
        what, _, more = file.partition(b":")
        body = packed({"frames": [[1, 1, "it", [0, 1, 1, 1, [0, 0, 1, 1], None, [], ["", "", None]]]]}, file[-3:])
        answer = rest + ANSWERED.pack(number + (what == b"number"), 0, len(body)) + body
        rest = b""
        if what in (b"answer", b"stall"):
            at = int(more.partition(b":")[0])
            answer, rest = answer[:at], answer[at:]
        if answer:
            os.write(1, answer)
        if what == b"answer":
            os._exit(0)


main()
