"""Write the archive of cubins atomically, and read its records (README.md has the layout)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

MAGIC = b"ECHOCUBN"
VERSION = 1
HEADER = struct.Struct("<8sIIIIQ32s")
RECORD = struct.Struct("<32s64s12IQQ32x")
CUBIN_ALIGNMENT = 64


@dataclass(frozen=True)
class Record:
    """One cubin and how to launch it; fields as README.md's table names them."""

    kernel: str
    entry: str
    sm: int
    activation: int
    bits: int
    block_size: int
    experts_limit: int
    tile_tokens: int
    tile_rows: int
    tile_depth: int
    num_warps: int
    shared_bytes: int
    registers: int
    parameters: int


def write_archive(path: Path, entries: Sequence[tuple[Record, bytes]], source_hash: bytes) -> None:
    """Write records and their cubins to `path` atomically; an existing file is replaced.

    Raises:
        ValueError: a name is too long for its field.
    """
    offset = _aligned(HEADER.size + RECORD.size * len(entries))
    records, cubins = bytearray(), bytearray()
    for record, cubin in entries:
        for name, limit in ((record.kernel, 31), (record.entry, 63)):
            if len(name) > limit:
                raise ValueError(f"{name} is longer than {limit} characters")
        kernel, entry, *numbers = astuple(record)
        records += RECORD.pack(
            kernel.encode("ascii"), entry.encode("ascii"), *numbers, offset + len(cubins), len(cubin)
        )
        cubins += cubin.ljust(_aligned(len(cubin)), b"\0")
    whole = offset + len(cubins)
    header = HEADER.pack(MAGIC, VERSION, len(entries), RECORD.size, HEADER.size, whole, source_hash)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes((header + records).ljust(offset, b"\0") + cubins)
    part.replace(path)


def read_archive(path: Path) -> list[tuple[Record, bytes]]:
    """Read every record of an archive with its cubin.

    Raises:
        ValueError: the file is no archive, of another version, or cut short.
    """
    data = path.read_bytes()
    if len(data) < HEADER.size or not data.startswith(MAGIC):
        raise ValueError(f"{path} is not an archive of cubins")
    _, version, count, size, first, whole, _ = HEADER.unpack_from(data)
    if version != VERSION or size != RECORD.size:
        raise ValueError(f"{path} has version {version} of the archive, not {VERSION}")
    if len(data) != whole:
        raise ValueError(f"{path} has {len(data)} bytes of {whole}: it was cut short")
    entries = []
    for place in range(first, first + count * size, size):
        kernel, entry, *numbers, offset, length = RECORD.unpack_from(data, place)
        names = (name.rstrip(b"\0").decode("ascii") for name in (kernel, entry))
        entries.append((Record(*names, *numbers), data[offset : offset + length]))
    return entries


def _aligned(offset: int) -> int:
    return -(-offset // CUBIN_ALIGNMENT) * CUBIN_ALIGNMENT
