"""Checkpoints of Qwen2.5-VL (EchoVLM V2) and Qwen2-VL: their published files are read, planned and refused as EchoVLM's are."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.make_checkpoint import make_checkpoint, published_config
from benchmarks.random_bundle import fills
from echovlm_edge.export import build_engines
from echovlm_edge.export.build_options import BuildOptions
from echovlm_edge.export.bundle.planned_bundle import plan
from echovlm_edge.export.estimate.__main__ import main
from echovlm_edge.export.graph.sketch import sketched_parts
from echovlm_edge.export.model import weights
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.export.source.config import EchoVLMConfig
from echovlm_edge.export.weights.quantize import Floating
from echovlm_edge.export.weights.weight_file import lay_out
from echovlm_edge.runtime.bundle.cost_model import ModelShape
from tests.support import golden, qwen_vl

V2 = Path(__file__).parents[1] / "published" / "qwen2_5_vl.json"
LARGE = 1 << 21  # weights; the patch embedding, 1176 x 1280, has fewer and no block that divides its inputs


@pytest.fixture(scope="module")
def v2_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of V2's published shapes, whose tensors are holes."""
    return make_checkpoint(
        tmp_path_factory.mktemp("v2") / "checkpoint",
        published_config(family="qwen2_5_vl"),
        dtype=torch.bfloat16,
        values=False,
    )


@pytest.fixture(scope="module", params=qwen_vl.FAMILIES)
def spellings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One checkpoint twice: with the published config and tensor names, and as newer files spell them."""
    folder = tmp_path_factory.mktemp(request.param)
    older, newer = (
        qwen_vl.write_checkpoint(request.param, folder / name, newer=name == "new") for name in ("old", "new")
    )
    return older, newer


def test_both_spellings_are_one_model(spellings: tuple[Path, Path]) -> None:
    older, newer = map(Checkpoint, spellings)
    assert "text_config" in newer.read_json("config.json") and "text_config" not in older.read_json("config.json")
    assert newer.config == older.config
    assert {info.stored for info in newer.tensors.values()} > {"model.visual.patch_embed.proj.weight", "lm_head.weight"}
    assert newer.tensors.keys() == older.tensors.keys()
    assert all(torch.equal(newer.read(name), older.read(name)) for name in older.tensors)


def test_v2_is_described_as_it_was_published() -> None:
    config = EchoVLMConfig.from_json(json.loads(V2.read_text()), "config.json")
    vision, decoder = config.vision, config.decoder
    assert (vision.embed_dim, vision.hidden_size, vision.head_dim, vision.patch_values) == (1280, 3584, 80, 1176)
    assert (vision.window, vision.window_patches, vision.full_blocks) == (4, 64, (7, 15, 23, 31))
    assert (vision.swiglu_dim, vision.mlp_dim) == (3420, 3456)
    assert decoder.dense_only and decoder.group_widths[0] == 18944 and decoder.mrope_section == (16, 24, 24)
    assert decoder.max_position_embeddings == 128000 and decoder.rope_theta == 1e6
    shape = ModelShape.of(json.loads(V2.read_text()))
    assert shape.group_widths == (18944,) and shape.decoder_weights == 28 * (29_360_128 + 203_685_888) + 544_997_376


def test_padding_is_zeros_whichever_rows_are_read(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_checkpoint(tmp_path / "checkpoint", qwen_vl.published("qwen2_5_vl")))
    vision, decoder = (weights.part_weights(checkpoint.config)[name] for name in ("vision_encoder", "decoder"))
    padded = {
        "visual.blocks.0.mlp.gate_proj.weight": vision["blocks.0.mlp.gate_proj.weight"],
        "visual.blocks.0.mlp.down_proj.weight": vision["blocks.0.mlp.down_proj.weight"],
        "visual.blocks.0.mlp.up_proj.bias": vision["blocks.0.mlp.up_proj.bias"],
        "model.layers.0.mlp.down_proj.weight": decoder["layers.0.dual_path_moe.down"],
    }
    for name, weight in padded.items():
        stored, whole = checkpoint.read(name), weight.read(checkpoint)
        assert whole.shape == weight.shape(checkpoint) and whole.shape > stored.shape
        inside = tuple(map(slice, stored.shape))
        assert torch.equal(whole[inside], stored) and whole.count_nonzero() == stored.count_nonzero()
        pieces = [weight.read(checkpoint, slice(row, min(row + 45, len(whole)))) for row in range(0, len(whole), 45)]
        assert torch.equal(torch.cat(pieces), whole)


def test_a_decoder_without_experts_weighs_its_dense_path_by_one(tmp_path: Path) -> None:
    """Its MoE path, of zeros, by more than 0, so that every kernel computes it. In a random bundle, too."""
    checkpoint = Checkpoint(make_checkpoint(tmp_path / "checkpoint", qwen_vl.published("qwen2_vl"), values=False))
    bias = weights.decoder_weights(checkpoint.config)["layers.0.dual_path_moe.coefficient_bias"]
    for stored in (bias.read(checkpoint), bias.read(checkpoint).half().float()):
        moe, dense = stored.softmax(0).tolist()
        assert dense == 1 and 0 < moe < 1e-8
    (piece,) = lay_out("decoder.data", [(bias, Floating())], checkpoint).pieces
    (fill,) = fills(piece, checkpoint)
    assert fill(np.random.default_rng(0), 8).view(np.float32).tolist() == list(weights.NO_MIXTURE)


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_no_large_product_of_v2_falls_back_to_floating_point(v2_shapes: Path, target: str) -> None:
    options = BuildOptions(v2_shapes, v2_shapes / "bundle", target)
    planned = plan(options, Checkpoint(v2_shapes), sketched_parts)
    floating = [
        name
        for part in planned.parts
        for name, stored in part.stored.items()
        if isinstance(stored.storage, Floating) and math.prod(stored.weight.shape(planned.checkpoint)) > LARGE
    ]
    assert not floating


def test_v2_is_planned_and_estimated(v2_shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--checkpoint", str(v2_shapes), "--output", str(v2_shapes / "bundle"), "--plan"]
    assert build_engines.main(options) == 0
    assert "decoder.data" in capsys.readouterr().out
    assert main(["--config", str(V2), "--target", "jetson-thor"]) == 0
    assert "tokens/s" in capsys.readouterr().out


def changed(file: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    config = json.loads(file.read_text())
    return {**config, **changes, "vision_config": {**config["vision_config"], **changes.get("vision_config", {})}}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"architectures": ["Qwen3VLForConditionalGeneration"]}, "describes Qwen3VL"),
    "no window": ({"vision_config": {"window_size": 0}}, "window_size 0 is no multiple of 28 pixels"),
    "torn tokens": ({"vision_config": {"window_size": 100}}, "window_size 100 is no multiple of 28"),
    "window of words": ({"vision_config": {"window_size": "112"}}, "window_size '112' is no multiple"),
    "no such block": ({"vision_config": {"fullatt_block_indexes": [7, 32]}}, r"\[7, 32\] are not different blocks"),
    "a block twice": ({"vision_config": {"fullatt_block_indexes": [7, 7]}}, r"\[7, 7\] are not different blocks"),
    "no list": ({"vision_config": {"fullatt_block_indexes": 7}}, "cannot be used"),
    "activation": ({"vision_config": {"hidden_act": "quick_gelu"}}, "must be 'silu'"),
    "projector": ({"vision_config": {"out_hidden_size": 2048}}, "2048 in vision_config must equal hidden_size 3584"),
    "rope": ({"rope_scaling": {"type": "yarn", "mrope_section": [16, 24, 24]}}, "rope type is 'yarn'"),
    "newer rope": ({"rope_parameters": {"rope_type": "linear", "mrope_section": [1]}}, "rope type is 'linear'"),
    "sliding": ({"use_sliding_window": True}, "use_sliding_window"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_is_refused_in_one_sentence(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, sentence = BAD[kind]
    shutil.copytree(golden.CHECKPOINT, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "checkpoint" / "config.json").write_text(json.dumps(changed(V2, changes)))
    output = tmp_path / "bundle"
    assert build_engines.main(["--checkpoint", str(tmp_path / "checkpoint"), "--output", str(output)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(sentence, error) and error.endswith("."), error
    assert not output.exists()
