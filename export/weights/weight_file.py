"""Lay out a bundle's weight files, and write them in parallel, piece by piece.

A weight is read, encoded and written some rows at a time where its storage allows: memory does not grow with the model.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from echovlm_edge.export.bundle.journal import Journal
from echovlm_edge.export.model.weights import Weight
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.export.weights.quantize import Storage
from echovlm_edge.export.weights.rounding import Rounding
from echovlm_edge.runtime.bundle.manifest import WEIGHT_ALIGNMENT
from echovlm_edge.runtime.resources.processors import usable_processors

PIECE_VALUES = 1 << 23  # encoded at a time by each thread: 32 MB of float32 and some temporaries


@dataclass(frozen=True)
class Place:
    """Where one tensor of a weight lies in its file, in bytes."""

    offset: int
    length: int


@dataclass(frozen=True)
class Piece:
    """Some rows of a weight (or all of it), and where each tensor that its storage makes of them goes."""

    file: str
    weight: Weight
    storage: Storage
    rows: slice | None
    places: tuple[Place, ...]

    @property
    def name(self) -> str:
        """Return the piece's name, unique in a bundle."""
        return f"{self.file}@{self.places[0].offset}"

    @property
    def bytes(self) -> int:
        """Return the bytes of all its tensors."""
        return sum(place.length for place in self.places)


RoundingOf = Callable[[Piece], Rounding]


@dataclass(frozen=True)
class WeightFile:
    """One file: every weight's places in the order given, each tensor on a page of its own, and the pieces to write."""

    name: str
    size: int
    places: tuple[tuple[Place, ...], ...]
    pieces: tuple[Piece, ...]

    @property
    def bytes(self) -> int:
        """Return the bytes that will be written, without padding."""
        return sum(piece.bytes for piece in self.pieces)


def lay_out(name: str, weights: Iterable[tuple[Weight, Storage]], checkpoint: Checkpoint) -> WeightFile:
    """Place weights one after another in the file `name`."""
    end, places = 0, []
    pieces: list[Piece] = []
    for weight, storage in weights:
        shape = weight.shape(checkpoint)
        placed = []
        for tensor in storage.tensors(shape):
            offset = -(-end // WEIGHT_ALIGNMENT) * WEIGHT_ALIGNMENT
            place = Place(offset, -(-math.prod(tensor.shape) * tensor.dtype.bitwidth // 8))
            end = place.offset + place.length
            placed.append(place)
        places.append(tuple(placed))
        pieces += _pieces(name, weight, storage, shape, tuple(placed))
    return WeightFile(name, end, tuple(places), tuple(pieces))


def _pieces(
    file: str, weight: Weight, storage: Storage, shape: tuple[int, ...], places: tuple[Place, ...]
) -> Iterator[Piece]:
    count = shape[0]
    if not storage.by_rows or math.prod(shape) <= PIECE_VALUES:
        yield Piece(file, weight, storage, None, places)
        return
    step = max(1, PIECE_VALUES // math.prod(shape[1:]))
    for start in range(0, count, step):
        rows = slice(start, min(start + step, count))
        yield Piece(file, weight, storage, rows, tuple(_rows_of(place, count, rows) for place in places))


def _rows_of(place: Place, count: int, rows: slice) -> Place:
    row = place.length // count
    return Place(place.offset + rows.start * row, (rows.stop - rows.start) * row)


def write_weights(
    folder: Path,
    files: Sequence[WeightFile],
    checkpoint: Checkpoint,
    journal: Journal,
    advance: Callable[[int], None],
    rounding_of: RoundingOf,
    threads: int | None = None,
) -> None:
    """Write the pieces that are not yet written, one piece per thread.

    Args:
        folder: the bundle being written.
        files: the weight files; they are created, or resumed where the journal knows their pieces.
        checkpoint: where the weights' values are.
        journal: the hashes of the written pieces; a piece on the disk is kept only if its hash agrees.
        advance: called with the bytes of every piece once it is written.
        rounding_of: how a piece's values become codes and scales, where it is stored in blocks.
        threads: default `usable_processors`.
    """
    descriptors: dict[str, int] = {}
    with ExitStack() as opened:
        for file in files:
            descriptors[file.name] = os.open(folder / file.name, os.O_RDWR | os.O_CREAT, 0o644)
            opened.callback(os.close, descriptors[file.name])
            os.ftruncate(descriptors[file.name], file.size)
        opened.enter_context(journal)
        pool = ThreadPoolExecutor(threads or usable_processors())
        opened.callback(pool.shutdown, cancel_futures=True)

        def write(piece: Piece) -> tuple[Piece, str | None]:
            known, descriptor = journal.known.get(piece.name), descriptors[piece.file]
            if known and known == _hash_on_disk(piece, descriptor):
                return piece, None
            return piece, _write_piece(piece, checkpoint, rounding_of(piece), descriptor)

        for done in as_completed([pool.submit(write, piece) for file in files for piece in file.pieces]):
            piece, digest = done.result()
            if digest:
                journal.record(piece.name, digest)
            advance(piece.bytes)


def _write_piece(piece: Piece, checkpoint: Checkpoint, rounding: Rounding, descriptor: int) -> str:
    digest = hashlib.sha256()
    arrays = piece.storage.encode(piece.weight.read(checkpoint, piece.rows).numpy(), rounding)
    for place, array in zip(piece.places, arrays, strict=True):
        values = _bytes(array)
        assert len(values) == place.length, f"{piece.name}: {len(values)} bytes for {place}"
        digest.update(values)
        written = 0
        while written < place.length:
            written += os.pwrite(descriptor, values[written:], place.offset + written)
    return digest.hexdigest()


def _hash_on_disk(piece: Piece, descriptor: int) -> str:
    digest = hashlib.sha256()
    for place in piece.places:
        digest.update(os.pread(descriptor, place.length, place.offset))
    return digest.hexdigest()


def _bytes(array: np.ndarray) -> memoryview:
    if array.dtype.name == "int4":  # ml_dtypes keeps one value a byte
        nibbles = array.view(np.uint8).reshape(-1) & 15
        if nibbles.size % 2:
            nibbles = np.append(nibbles, np.uint8(0))
        array = nibbles[::2] | (nibbles[1::2] << 4)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
