"""Builds with `--calibrate`, from the command to bundle.json: a random checkpoint of two layers, pictures of noise."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

from benchmarks.make_checkpoint import config_like_published, make_checkpoint
from echovlm_edge.export import build_engines
from echovlm_edge.export.build_options import BuildOptions, CalibrationOptions
from echovlm_edge.export.bundle.journal import Journal
from echovlm_edge.export.bundle.planned_bundle import plan
from echovlm_edge.export.calibration import room
from echovlm_edge.export.calibration.passage import decoder_pass
from echovlm_edge.export.calibration.rounding.rounded_weights import RoundedWeights
from echovlm_edge.export.graph.sketch import sketched_parts
from echovlm_edge.export.model.dual_path_moe import DualPathMoE
from echovlm_edge.export.progress import Progress
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.export.weights.weight_file import write_weights
from echovlm_edge.runtime.bundle.calibration_pictures import (
    CALIBRATION_PICTURES,
    calibration_pictures,
    picture_hash,
    refuse_overlap,
)
from echovlm_edge.runtime.bundle.manifest import Bundle, Calibration, RoundedLayers
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.resources.machine_memory import MachineMemory
from tests.support import qwen_vl

SMALL = config_like_published(width=128, layers=2, vision_width=80, vision_depth=1, vocab_size=1024)
PICTURES = 18


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its every width takes blocks of 128."""
    return make_checkpoint(tmp_path_factory.mktemp("small") / "checkpoint", SMALL, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data file in the authors' format, its pictures beside it."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    rows = []
    for number in range(PICTURES):
        coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize((84, 84)).save(folder / f"{number}.png")
        turns = [
            {"from": "human", "value": "<image>What is seen?"},
            {"from": "gpt", "value": f"A lesion of {number} mm."},
        ]
        rows.append({"id": str(number), "image": [f"{number}.png"], "conversations": turns})
    (folder / "data.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder / "data.json"


def options_of(
    checkpoint: Path, output: Path, source: Path, bits: float | None = None, **further: object
) -> BuildOptions:
    wish = CalibrationOptions(source, bits=bits)
    return BuildOptions(checkpoint, output, calibration=wish, **further)  # type: ignore[arg-type]


def write(options: BuildOptions) -> Calibration:
    """Round and write a bundle's weights as a build does, but trace nothing, which would take most of the time."""
    checkpoint = Checkpoint(options.checkpoint)
    with Progress(Console()) as progress, room.calibration_room(options, checkpoint, progress) as calibration:
        assert calibration is not None
        options = replace(options, mixed=calibration.choose())
        planned = plan(options, checkpoint, sketched_parts)
        calibration.round(planned)
        options.output.mkdir()
        rounding_of = calibration.rounding_of(planned, options.how_to_round)
        journal = Journal(options.output, "")
        write_weights(options.output, planned.files, checkpoint, journal, lambda _: None, rounding_of)
        journal.remove()
        return calibration.record(options.output)


def run(checkpoint: Path, output: Path, *options: object) -> int:
    return build_engines.main(["--checkpoint", str(checkpoint), "--output", str(output), *map(str, options)])


def lines_of(calibration: Calibration | None) -> Mapping[str, RoundedLayers]:
    assert calibration is not None
    return {line.weight: line for line in calibration.weights}


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def calibrated(checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole build, by the command."""
    output = tmp_path_factory.mktemp("calibrated") / "bundle"
    arguments = ["--checkpoint", str(checkpoint), "--output", str(output), "--calibrate", str(data)]
    assert build_engines.main(arguments) == 0
    assert [path.name for path in output.parent.iterdir()] == ["bundle"], "the calibration left something"
    return output


def same_weights(folder: Path, calibrated: Path) -> None:
    for file in ("decoder.data", "vision_encoder.data", "projector.data", "token_embedding.bin"):
        assert (folder / file).read_bytes() == (calibrated / file).read_bytes(), file


def test_the_bundle_tells_how_each_weight_was_made(calibrated: Path, data: Path) -> None:
    manifest = Bundle(calibrated, verify=True).manifest
    calibration, made = manifest.calibration, lines_of(manifest.calibration)
    assert calibration is not None and calibration.answers and calibration.pictures == PICTURES
    assert calibration.bits == 4.125
    down = made["model.layers.*.moe.experts.3.down_proj.weight"]
    assert (down.method, down.bits, down.block_size, down.layers) == ("feedback", 4, 128, "0-1")
    head = made["lm_head.weight"]
    assert (head.method, head.bits, head.layers, head.tokens) == ("feedback", 8, "", (calibration.tokens,) * 2)
    assert made["visual.blocks.*.attn.qkv.weight"].bits == 8
    assert CALIBRATION_PICTURES in [file.name for file in manifest.files]
    hashes = [picture_hash((data.parent / f"{number}.png").read_bytes()) for number in range(PICTURES)]
    assert (calibrated / CALIBRATION_PICTURES).read_text().split() == sorted(hashes)


def test_pictures_of_the_calibration_are_refused_for_an_evaluation(calibrated: Path, data: Path) -> None:
    seen, new = picture_hash((data.parent / "3.png").read_bytes()), picture_hash(b"another")
    pictures = calibration_pictures(Bundle(calibrated))
    refuse_overlap(pictures, [new])
    with pytest.raises(NotPossibleHere, match="was calibrated with 1 of these pictures"):
        refuse_overlap(pictures, [seen, new])


def test_its_text_is_nearer(calibrated: Path, build_bundle: Callable[..., Path], checkpoint: Path) -> None:
    """Than of plain rounding in the same bytes, on pictures that it was not calibrated with: an ultrasound image and a crop of it."""
    plain = build_bundle(checkpoint, precision="int4", rounding="plain")
    assert (plain / "decoder.data").stat().st_size == (calibrated / "decoder.data").stat().st_size
    without, with_data = (
        {stage.sample: stage.relative_error for stage in Bundle(bundle).manifest.parity if stage.stage == "prefill"}
        for bundle in (plain, calibrated)
    )
    assert len(without) == 2
    assert all(with_data[sample] < 0.9 * error for sample, error in without.items())


def test_a_model_with_windows_and_padded_widths_is_calibrated(data: Path, tmp_path: Path) -> None:
    """EchoVLM V2's family: each weight with the zeros that it is padded with."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint", qwen_vl.published("qwen2_5_vl"), dtype=torch.bfloat16)
    made = lines_of(write(options_of(checkpoint, tmp_path / "bundle", data)))
    for name in ("mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"):
        assert made[f"visual.blocks.*.{name}"].bits == 8 and made[f"model.layers.*.{name}"].bits == 4
    assert {line.method for line in made.values()} == {"feedback"}


def test_killed_and_resumed_it_ends_in_the_same_bytes(
    calibrated: Path, checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the decoder's second layer; a file that a power failure has cut short is made again."""
    options, work = options_of(checkpoint, tmp_path / "bundle", data), tmp_path / ".bundle.calibration"
    process = multiprocessing.get_context("spawn").Process(target=write, args=(options,))
    process.start()
    while not (work / "model.layers.1.mlp.gate_proj.weight.safetensors").is_file():
        assert process.is_alive(), "it ended before it could be killed"
        time.sleep(0.005)
    process.kill()
    process.join()
    assert (work / "rounded-1").is_file()
    with (work / "model.layers.0.mlp.up_proj.weight.safetensors").open("r+b") as cut:
        cut.truncate(1000)
    rounded: list[str] = []
    put = RoundedWeights.put

    def noted(weights: RoundedWeights, name: str, *rest: object) -> None:
        rounded.append(name)
        put(weights, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(RoundedWeights, "put", noted)
    write(options)
    assert "model.layers.0.mlp.up_proj.weight" in rounded
    assert not {"visual.blocks.0.attn.qkv.weight", "model.layers.0.mlp.gate_proj.weight"} & set(rounded)
    same_weights(tmp_path / "bundle", calibrated)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_resumed_calibration_begins_where_it_was(
    calibrated: Path, checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, put = options_of(checkpoint, tmp_path / "bundle", data), RoundedWeights.put

    def interrupted(weights: RoundedWeights, name: str, *rest: object) -> None:
        if name == "model.layers.1.self_attn.o_proj.weight":
            raise KeyboardInterrupt
        put(weights, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(RoundedWeights, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(options)
    monkeypatch.setattr(RoundedWeights, "put", put)
    layers: list[int] = []
    layer = decoder_pass.DecoderPass.layer

    def noted(decoder: decoder_pass.DecoderPass, number: int, *rest: object) -> object:
        layers.append(number)
        return layer(decoder, number, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(decoder_pass.DecoderPass, "layer", noted)
    write(options)
    assert layers == [1]
    same_weights(tmp_path / "bundle", calibrated)


def test_threads_make_no_difference(
    calibrated: Path, checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "threads", lambda: 3)
    write(options_of(checkpoint, tmp_path / "bundle", data))
    same_weights(tmp_path / "bundle", calibrated)


def test_an_expert_that_no_token_reaches_takes_all_tokens(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    route = DualPathMoE.route

    def never_the_last(block: DualPathMoE, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        coefficients, kept, _ = route(block, tokens)
        return coefficients, kept, torch.tensor([0, 1]).expand(len(tokens), 2)

    monkeypatch.setattr(DualPathMoE, "route", never_the_last)
    calibration = write(options_of(checkpoint, tmp_path / "bundle", data))
    for name in ("gate", "up", "down"):
        reached, unreached = (
            lines_of(calibration)[f"model.layers.*.moe.experts.{expert}.{name}_proj.weight"] for expert in (0, 3)
        )
        assert (reached.everyones, unreached.everyones) == ("", "0-1")
        assert reached.tokens == unreached.tokens == (calibration.tokens, calibration.tokens)


@pytest.mark.parametrize("target", ["portable", "cuda"])
def test_other_targets_store_what_was_rounded(
    target: str, calibrated: Path, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    """A GPU's scales have another type, experts may be stored one by one, and columns as rows."""
    calibration = write(options_of(checkpoint, tmp_path / "bundle", data, target=target, spell_out=target == "cuda"))
    own = lines_of(Bundle(calibrated).manifest.calibration)
    name = "model.layers.*.mlp.up_proj.weight"
    assert lines_of(calibration)[name] == own[name]
    assert lines_of(calibration).keys() == own.keys()


def test_bits_are_a_budget(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    calibration = write(options_of(checkpoint, tmp_path / "bundle", data, bits=5))
    assert 4.125 < calibration.bits <= 5
    layers = [line for line in calibration.weights if ".layers." in line.weight]
    assert len({(line.bits, line.block_size) for line in layers}) > 1, "no layer differs from the others"
    with pytest.raises(NotPossibleHere, match=r"is less than the 4\.125"):
        write(options_of(checkpoint, tmp_path / "less", data, bits=4))
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_folder_of_pictures_is_enough(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    calibration = write(options_of(checkpoint, tmp_path / "bundle", data.parent))  # its data file is no picture
    assert not calibration.answers and calibration.pictures == PICTURES


def test_pictures_that_cannot_be_used_are_named_and_left_out(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A damaged file and one that is missing; one of NaN alone is decoded to black, as it is when it is served."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(PICTURES):
        os.link(data.parent / f"{number}.png", folder / f"{number}.png")
    (folder / "damaged.png").write_bytes((folder / "0.png").read_bytes()[:60])
    Image.fromarray(np.full((84, 84), np.nan, np.float32)).save(folder / "nan.tiff")
    rows = json.loads(data.read_text())
    rows += [{**rows[0], "image": [name], "id": name} for name in ("damaged.png", "missing.png", "nan.tiff")]
    (folder / "data.json").write_text(json.dumps(rows))
    assert write(options_of(checkpoint, tmp_path / "bundle", folder / "data.json")).pictures == PICTURES + 1
    said = "".join(capsys.readouterr().out.split())
    assert "damaged.png" in said and "missing.png" in said


def refusal(capsys: pytest.CaptureFixture[str], checkpoint: Path, folder: Path, *options: object) -> str:
    before = sorted(folder.iterdir())
    assert run(checkpoint, folder / "bundle", *options) == 2
    assert sorted(folder.iterdir()) == before, "a refused build left something"
    return " ".join(capsys.readouterr().err.split())


def test_too_few_pictures(checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = tmp_path / "few"
    few.mkdir()
    os.link(data.parent / "0.png", few / "0.png")
    said = refusal(capsys, checkpoint, tmp_path, "--calibrate", few)
    assert "1 can be used, and it takes 16" in said and "leave --calibrate away" in said


def test_too_little_memory(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(room, "machine_memory", lambda: MachineMemory(1 << 30, None, 200_000_000))
    said = refusal(capsys, checkpoint, tmp_path, "--calibrate", data)
    assert "of memory, and this machine has 0.20 GB free" in said and "leave --calibrate away" in said


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--bits", 5], "--bits belongs to a calibration"),
        (["--images", "."], "--images belongs to a calibration"),
        (["--calibrate", ".", "--precision", "fp32"], "rounds nothing"),
        (["--calibrate", ".", "--precision", "int8", "--bits", 5], "--bits mixes 8 bits into"),
        (["--calibrate", "nowhere.json"], "nowhere.json cannot be read"),
    ],
)
def test_options_that_do_not_fit(
    options: Sequence[object],
    sentence: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert sentence in refusal(capsys, checkpoint, tmp_path, *options)


def test_damaged_weights_are_a_sentence(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    (shard,) = broken.glob("*.safetensors")
    tensors = load_file(shard)
    tensors["visual.patch_embed.proj.weight"][0] = torch.nan
    save_file(tensors, shard)
    said = refusal(capsys, broken, tmp_path, "--calibrate", data)
    assert "are not finite in the calibration" in said


def test_a_plan_tells_what_it_takes(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(checkpoint, tmp_path / "bundle", "--calibrate", data, "--plan") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Calibration with up to 32,768 tokens" in said and "memory, at its peak" in said
    assert list(tmp_path.iterdir()) == []
