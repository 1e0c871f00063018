"""Check before parsing how large a message will be once parsed: two bytes can become an object of a hundred bytes."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.message import Message

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.contracts.errors import InvalidInput

MAX_FIELDS = 1024  # of a request, and of each of its images
MAX_BYTES = 1 << 20  # of a request without its image files


def check_shape(data: bytes, kind: type[Message]) -> None:
    """Refuse a request that has too many fields, or is large without its image files.

    Args:
        data: the request's bytes.
        kind: its message type.

    Raises:
        InvalidInput: the request is refused, or is not a message at all.
    """
    images = {field.number for field in kind.DESCRIPTOR.fields if field.message_type is pb.Image.DESCRIPTOR}
    files = 0
    for number, start, end in _fields(data, 0, len(data)):
        if number in images:
            inside = _fields(data, start, end)
            files += sum(stop - begin for field, begin, stop in inside if field == pb.Image.DATA_FIELD_NUMBER)
    if len(data) - files > MAX_BYTES:
        raise InvalidInput(
            f"The request has {len(data) - files:,} bytes besides its image files, more than {MAX_BYTES:,}: send a smaller one."
        )


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield each field's number and where its contents begin and end; fields without a length are skipped."""
    for _ in range(MAX_FIELDS):
        if start == end:
            return
        tag, start = _varint(data, start, end)
        match tag & 7:  # the wire type: protobuf.dev/programming-guides/encoding
            case 0:
                _, start = _varint(data, start, end)
            case 1:
                start += 8
            case 5:
                start += 4
            case 2:
                size, start = _varint(data, start, end)
                if start + size <= end:
                    yield tag >> 3, start, start + size
                start += size
            case _:
                raise InvalidInput("The message is damaged: send it again.")
        if start > end:
            raise InvalidInput("The message is damaged: send it again.")
    if start < end:
        raise InvalidInput(f"The request has more than {MAX_FIELDS:,} fields: send fewer images.")


def _varint(data: bytes, start: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if start >= end:
            break
        byte = data[start]
        value |= (byte & 0x7F) << shift
        start += 1
        if byte < 0x80:
            return value, start
    raise InvalidInput("The message is damaged: send it again.")
