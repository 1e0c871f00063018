"""Bundles of random weights: they run, activations stay in range, and no file holds what quantizing never stores."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks.make_checkpoint import GOLDEN, config_like_published, make_checkpoint, spread
from benchmarks.random_bundle import fill, random_bundle
from echovlm_edge.export.build_options import BuildOptions
from echovlm_edge.export.model.weights import decoder_weights
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.export.weights.quantize import (
    DequantizeColumns,
    Floating,
    GroupedBlocks,
    MatMulNBitsBlocks,
    Precision,
    Storage,
)
from echovlm_edge.export.weights.weight_file import lay_out
from echovlm_edge.plugins.dual_path_moe.reference import dequantize_blocks
from echovlm_edge.runtime.backends import new_cache
from echovlm_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.prompting.rotary import MultimodalRotary, vision_angles

SMALL = config_like_published(width=256, layers=2, vision_width=80, vision_depth=1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Shapes without values."""
    return Checkpoint(make_checkpoint(tmp_path_factory.mktemp("shapes") / "checkpoint", SMALL, values=False))


def test_a_checkpoint_of_shapes_takes_no_space(checkpoint: Checkpoint) -> None:
    shards = list(checkpoint.path.glob("*.safetensors"))
    assert (
        sum(shard.stat().st_blocks * 512 for shard in shards) < 100_000 < sum(shard.stat().st_size for shard in shards)
    )


def test_it_runs_and_its_numbers_stay_in_range(tmp_path: Path) -> None:
    options = BuildOptions(Path("none"), tmp_path / "bundle", name="random")
    random_bundle(options, SMALL, GOLDEN, Console(quiet=True))
    bundle = Bundle(tmp_path / "bundle", verify=True)
    backend, spec = OnnxRuntimeBackend(bundle), bundle.manifest.model
    patches = np.random.default_rng(0).standard_normal((16 * 16, 1176), np.float32)
    image = backend.project(backend.encode(patches, vision_angles((1, 16, 16), 2, spec.vision_head_dim)))
    tokens = np.concatenate((backend.embed(np.arange(30)), image))
    angles = MultimodalRotary(spec.mrope_section, spec.rope_theta).angles(np.tile(np.arange(len(tokens)), (3, 1)))
    logits = np.asarray(backend.decode(tokens, angles, 0, np.arange(len(tokens)), new_cache(backend, 128)))
    assert 0.3 < logits.std() < 3
    assert len(set(logits.argmax(1).tolist())) > len(tokens) // 2, "one token is the likeliest everywhere"


def dequantized(storage: Storage, shape: tuple[int, ...], arrays: list[np.ndarray]) -> np.ndarray:
    """The stored weight's values."""
    if isinstance(storage, Floating):
        return arrays[0].astype(np.float64)
    bits, scale = storage.precision.bits, arrays[1].astype(np.float32)  # type: ignore[attr-defined]
    stored = arrays[0].reshape(-1).view(np.uint8)
    if isinstance(storage, DequantizeColumns):
        if bits == 4:
            nibbles = np.stack((stored & 15, stored >> 4), -1).reshape(shape[::-1]).astype(np.int8)
            values = np.where(nibbles > 7, nibbles - 16, nibbles)
        else:
            values = stored.view(np.int8).reshape(shape[::-1])
        assert values.min() >= 1 - (1 << (bits - 1))
        return values * np.repeat(scale.reshape(-1, shape[0]), storage.precision.block_size, 0)
    if isinstance(storage, MatMulNBitsBlocks) and bits == 8:
        stored = stored ^ np.uint8(128)
    packed = stored.view(np.int8).reshape(shape[0], -1)
    return dequantize_blocks(packed, scale.reshape(shape[0], -1), bits)


@pytest.mark.parametrize(
    "storage",
    [
        *(
            kind(Precision(bits, 64))
            for kind in (GroupedBlocks, MatMulNBitsBlocks, DequantizeColumns)
            for bits in (4, 8)
        ),
        Floating(transposed=True),
    ],
    ids=lambda storage: f"{type(storage).__name__}{getattr(storage, 'precision', Precision(32)).bits}",
)
def test_every_storage_holds_weights_of_mean_zero_and_the_checkpoints_spread(
    storage: Storage, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    weight = decoder_weights(checkpoint.config)["layers.0.dual_path_moe.gate"]
    shape = weight.shape(checkpoint)
    file = lay_out("w.data", [(weight, storage)], checkpoint)
    written: list[int] = []
    fill(tmp_path, [file], checkpoint, written.append)
    assert sum(written) == file.bytes
    content = (tmp_path / "w.data").read_bytes()
    (places,) = file.places
    arrays = [
        np.frombuffer(content[place.offset : place.offset + place.length], np.uint8).view(dtype)
        for place, dtype in zip(places, dtypes(storage, shape), strict=True)
    ]
    values = dequantized(storage, shape, arrays)
    _, deviation = spread(weight.tensors[0], checkpoint.tensors[weight.tensors[0]].shape)
    assert values.size == math.prod(shape)
    assert values.std() == pytest.approx(deviation, rel=0.02)
    assert abs(values.mean()) < 0.02 * deviation


def dtypes(storage: Storage, shape: tuple[int, ...]) -> list[np.dtype]:
    """Of the stored bytes: 4-bit values are looked at as bytes."""
    found = [tensor.dtype.numpy() for tensor in storage.tensors(shape)]
    return [np.dtype(np.uint8) if dtype.name == "int4" else dtype for dtype in found]


def test_a_target_with_engines_is_refused(tmp_path: Path) -> None:
    options = BuildOptions(Path("none"), tmp_path / "bundle", "rtx", name="random")
    with pytest.raises(NotPossibleHere, match="no engines: choose a target of cuda"):
        random_bundle(options, SMALL, GOLDEN, Console(quiet=True))
