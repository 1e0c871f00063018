"""Check before parsing how large a message will be once parsed: two bytes can become an object of a hundred bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.message import Message

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.contracts.errors import InvalidInput

MAX_FIELDS = 1024  # of a request with its earlier turns, and of each of its images
MAX_BYTES = 1 << 20  # of a request without its image files


def check_shape(data: bytes, kind: type[Message]) -> None:
    """Refuse a request that has too many fields, or is large without its image files.

    Args:
        data: the request's bytes.
        kind: its message type.

    Raises:
        InvalidInput: the request is refused, or is not a message at all.
    """
    files = _file_bytes(data, 0, len(data), kind.DESCRIPTOR, _budget())
    if len(data) - files > MAX_BYTES:
        raise InvalidInput(
            f"The request has {len(data) - files:,} bytes besides its image files, more than {MAX_BYTES:,}: send a smaller one."
        )


def _file_bytes(data: bytes, start: int, end: int, kind: Any, fields: Iterator[int]) -> int:
    """Count the bytes of image files in a message of the descriptor `kind`, and in its turns, which share its number of `fields`."""
    kinds = {field.number: field.message_type for field in kind.fields}
    files = 0
    for number, begin, stop in _fields(data, start, end, fields):
        inner = kinds.get(number)
        if inner is pb.Image.DESCRIPTOR:
            inside = _fields(data, begin, stop, _budget())
            files += sum(last - first for field, first, last in inside if field == pb.Image.DATA_FIELD_NUMBER)
        elif inner is pb.Conversation.DESCRIPTOR or inner is pb.Turn.DESCRIPTOR:
            files += _file_bytes(data, begin, stop, inner, fields)
    return files


def _budget() -> Iterator[int]:
    return iter(range(MAX_FIELDS))


def _fields(data: bytes, start: int, end: int, fields: Iterator[int]) -> Iterator[tuple[int, int, int]]:
    """Yield each field's number and where its contents begin and end; fields without a length are skipped."""
    for _ in fields:
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
