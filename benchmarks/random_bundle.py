"""Write a bundle of random weights without a checkpoint: graphs from shapes, and files of weights filled with random numbers.

python -m benchmarks.random_bundle --target cuda --output bundles/random                # the published size: 7.5 GB, a minute
python -m benchmarks.random_bundle --target cpu --layers 2 --output bundles/random-2

It computes nothing sensible, but as much as a real one: weights are scaled so that activations stay in a normal range.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.make_checkpoint import PUBLISHED_CONFIGS, make_checkpoint, published_config, spread
from echovlm_edge.export.build_engines import write_graphs
from echovlm_edge.export.build_options import BuildOptions
from echovlm_edge.export.bundle.bundle_folder import bundle_folder, check_output
from echovlm_edge.export.bundle.planned_bundle import open_checkpoint, plan
from echovlm_edge.export.graph.tracing import traced_parts
from echovlm_edge.export.progress import Progress
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.export.weights.quantize import DequantizeColumns, Floating, GroupedBlocks, MatMulNBitsBlocks, Storage
from echovlm_edge.export.weights.rounding import round_blocks
from echovlm_edge.export.weights.weight_file import Piece, Place, WeightFile
from echovlm_edge.runtime.bundle.manifest import Manifest
from echovlm_edge.runtime.contracts.command import run_command
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.resources.processors import usable_processors

TARGETS = ("cuda", "cpu", "portable")  # whose bundles are graphs and files of weights
AT_ONCE = 1 << 24  # bytes of a file that a thread fills at a time
SEED = 0

Bytes = NDArray[np.uint8]
Fill = Callable[[np.random.Generator, int], Bytes]  # so many random bytes of a tensor


def random_bundle(
    options: BuildOptions, config: Mapping[str, Any], tokenizer: Path | None, console: Console
) -> Manifest:
    """Write a bundle of a model with `config` at `options.output`, atomically.

    Args:
        options: of the build; the checkpoint that they name is not read.
        config: a parsed config.json.
        tokenizer: as in `make_checkpoint`.
        console: where the progress is drawn.

    Raises:
        NotPossibleHere: the target runs engines, the output is taken, or the disk has too little room.
    """
    if options.target not in TARGETS:
        raise NotPossibleHere(f"A random bundle has no engines: choose a target of {', '.join(TARGETS)}.")
    check_output(options.output, options.replace)
    with tempfile.TemporaryDirectory() as shapes, Progress(console) as progress:
        folder = make_checkpoint(
            Path(shapes) / "random", config, dtype=torch.bfloat16, tokenizer=tokenizer, values=False
        )
        options = replace(options, checkpoint=folder)
        checkpoint = open_checkpoint(options, progress)
        with progress.stage("Tracing"):
            planned = plan(options, checkpoint, traced_parts)
        needed = sum(file.bytes for file in planned.files)
        with bundle_folder(options.output, needed, "random", replace=options.replace) as made:
            with progress.stage("Filling weights", total=needed) as advance:
                fill(made.path, planned.files, checkpoint, advance)
            with progress.stage("Writing graphs"):
                written = write_graphs(options, planned, made, checkpoint.layout_sha256)
                manifest = replace(written, rounding="random")
            made.write_manifest(manifest)
    return manifest


def fill(
    folder: Path,
    files: Sequence[WeightFile],
    checkpoint: Checkpoint,
    advance: Callable[[int], None] = lambda size: None,
) -> None:
    """Create a bundle's files of weights, and fill every tensor with random values of its kind.

    Args:
        folder: the bundle being written.
        files: laid out as in a build.
        checkpoint: tells the tensors' shapes.
        advance: called with the bytes of every write.
    """
    streams = iter(
        np.random.SeedSequence(SEED).spawn(sum(file.size // AT_ONCE + 2 * len(file.pieces) for file in files))
    )
    for file in files:
        descriptor = os.open(folder / file.name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            os.ftruncate(descriptor, file.size)

            def write(place: Place, values: Fill, stream: np.random.SeedSequence, to: int = descriptor) -> int:
                content = values(np.random.Generator(np.random.SFC64(stream)), place.length).data
                written = 0
                while written < place.length:
                    written += os.pwrite(to, content[written:], place.offset + written)
                return written

            with ThreadPoolExecutor(usable_processors()) as pool:
                running = [
                    pool.submit(write, place, values, next(streams))
                    for piece in file.pieces
                    for whole, values in zip(piece.places, fills(piece, checkpoint), strict=True)
                    for place in _parts(whole)
                ]
                for done in running:
                    advance(done.result())
        finally:
            os.close(descriptor)


def fills(piece: Piece, checkpoint: Checkpoint) -> list[Fill]:
    """Choose the random values of each tensor that a weight is stored as: values, then the scales of quantized ones."""
    weight, storage = piece.weight, piece.storage
    if not weight.tensors:  # the same in every model
        (constant,) = storage.encode(weight.read(checkpoint).numpy(), round_blocks)
        return [lambda random, size: _bytes(constant)]
    around, deviation = spread(weight.tensors[0], checkpoint.tensors[weight.tensors[0]].shape)
    dtypes = [tensor.dtype.numpy() for tensor in storage.tensors(weight.shape(checkpoint))]
    if isinstance(storage, Floating):
        return [_normal(dtypes[0], around, deviation)]
    table, unit = _integers(storage)
    return [_from_table(table), _constant(dtypes[1], deviation / unit)]


def _parts(place: Place) -> list[Place]:
    return [
        Place(place.offset + start, min(AT_ONCE, place.length - start)) for start in range(0, place.length, AT_ONCE)
    ]


def _normal(dtype: np.dtype[Any], around: float, deviation: float) -> Fill:
    def values(random: np.random.Generator, size: int) -> Bytes:
        noise = random.standard_normal(size // dtype.itemsize, np.float32)
        return _bytes((around + np.float32(deviation) * noise).astype(dtype))

    return values


def _constant(dtype: np.dtype[Any], value: float) -> Fill:
    return lambda random, size: _bytes(np.full(size // dtype.itemsize, value, dtype))


def _from_table(table: NDArray[np.uint16]) -> Fill:
    """Look random pairs of bytes up in a table of what they become."""

    def values(random: np.random.Generator, size: int) -> Bytes:
        drawn = random.integers(0, 1 << 64, -(-size // 8), np.uint64).view(np.uint16)
        return _bytes(table.take(drawn))[:size]

    return values


def _integers(storage: Storage) -> tuple[NDArray[np.uint16], float]:
    """Return what each pair of stored bytes becomes, and the standard deviation of the integers that they then stand for.

    One integer has no opposite, -8 or -128: a zero takes its place, so that the mean is 0 and no kernel meets what quantizing
    never stores.
    """
    assert isinstance(storage, (GroupedBlocks, MatMulNBitsBlocks, DequantizeColumns))
    bits = storage.precision.bits
    # DualPathMoE's packing has its 4-bit values, and MatMulNBits all of them, above a zero point; the others are in two's complement.
    above = isinstance(storage, MatMulNBitsBlocks) or (isinstance(storage, GroupedBlocks) and bits == 4)
    half = 1 << (bits - 1)
    lowest, zero = (0, half) if above else (half, 0)
    stored = np.arange(1 << bits)
    stored = np.where(stored == lowest, zero, stored)
    signed = stored - half if above else np.where(stored >= half, stored - 2 * half, stored)
    byte = stored if bits == 8 else (stored[:, None] << 4 | stored).reshape(-1)
    pairs = (byte[:, None] << 8 | byte).reshape(-1)
    return pairs.astype(np.uint16), math.sqrt(np.mean(signed.astype(np.float64) ** 2))


def _bytes(array: NDArray[Any]) -> Bytes:
    return array.reshape(-1).view(np.uint8)


def main() -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Write a bundle of random weights in the published model's shape.")
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="BUNDLE", help="folder to make")
    add("--replace", action="store_true", help="put it in the place of a bundle that is at --output already")
    add("--target", choices=TARGETS, default="cuda")
    add("--precision", default="int4", help="of the decoder's weights (default int4)")
    add("--family", choices=PUBLISHED_CONFIGS, default="echovlm", help="of the model (default echovlm)")
    add("--layers", type=int, help="of the decoder (default: all 28)")
    add("--vision-depth", type=int, help="blocks of the vision encoder (default: all 32)")
    options = parser.parse_args()
    build = BuildOptions(
        Path("random"), options.output, options.target, options.precision, name="random", replace=options.replace
    )
    config = published_config(options.layers, options.vision_depth, options.family)
    random_bundle(build, config, None, Console(stderr=True))
    print(f"{options.output} written.")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
