"""What makes the published size possible: weights in pieces, builds that go on, a layer at a time, plans, the published layout."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from safetensors import safe_open
from tokenizers import Tokenizer

from benchmarks import make_checkpoint as maker
from benchmarks.make_checkpoint import config_like_published, make_checkpoint, published_config
from benchmarks.qwen_tokenizer import FIRST_SPECIAL_ID, SPECIAL_TOKENS, write_tokenizer
from echovlm_edge.export import build_engines
from echovlm_edge.export.build_engines import BuildOptions, build
from echovlm_edge.export.bundle.bundle_folder import bundle_folder
from echovlm_edge.export.bundle.journal import JOURNAL, Journal
from echovlm_edge.export.model.weights import TOKEN_EMBEDDING, decoder_weights
from echovlm_edge.export.parity.reference import DecoderInput, TorchBackend
from echovlm_edge.export.source.checkpoint import INDEX, Checkpoint, expected_tensors
from echovlm_edge.export.source.config import EchoVLMConfig
from echovlm_edge.export.weights import weight_file
from echovlm_edge.export.weights.quantize import DequantizeColumns, Floating, GroupedBlocks, Precision, Storage
from echovlm_edge.export.weights.rounding import round_blocks
from echovlm_edge.export.weights.weight_file import lay_out, write_weights
from echovlm_edge.runtime.backends import new_cache
from echovlm_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.prompting.rotary import MultimodalRotary, vision_angles
from tests.support import golden

BuildBundle = Callable[..., Path]
SMALL = config_like_published(width=128, layers=2, vision_width=80, vision_depth=2, vocab_size=1024)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose every width takes blocks of 128."""
    return make_checkpoint(tmp_path_factory.mktemp("small") / "checkpoint", SMALL)


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the build's may clean up after it."""


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# --- weights in pieces ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "storage",
    [
        GroupedBlocks(Precision(4, 32)),
        GroupedBlocks(Precision(8, 32), ir.DataType.FLOAT16),
        Floating(),
        Floating(transposed=True),
        DequantizeColumns(Precision(4, 16)),
    ],
)
@pytest.mark.parametrize("name", ["gate", "down", "coefficient_bias"])
def test_pieces_make_the_bytes_of_the_whole(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, storage: Storage
) -> None:
    """`gate` is stacked along its rows, `down` along its columns; a piece may span stacked tensors."""
    if name == "coefficient_bias":
        storage = Floating()
    checkpoint = Checkpoint(small)
    weight = decoder_weights(checkpoint.config)[f"layers.0.dual_path_moe.{name}"]
    monkeypatch.setattr(weight_file, "PIECE_VALUES", 1000)
    file = lay_out("data", [(TOKEN_EMBEDDING, Floating()), (weight, storage)], checkpoint)
    write_weights(tmp_path, [file], checkpoint, Journal(tmp_path, "x"), lambda _: None, lambda _: round_blocks)
    written = (tmp_path / "data").read_bytes()
    for place, array in zip(file.places[1], storage.encode(weight.read(checkpoint).numpy(), round_blocks), strict=True):
        assert place.offset % 4096 == 0
        assert written[place.offset : place.offset + place.length] == bytes(weight_file._bytes(array))
    assert len(file.pieces) > 3 or name == "coefficient_bias"


@given(rows=st.tuples(st.integers(0, 200), st.integers(1, 200)))
def test_any_rows_of_a_stacked_weight(small: Path, rows: tuple[int, int]) -> None:
    checkpoint = Checkpoint(small)
    weights = decoder_weights(checkpoint.config)
    some = slice(rows[0], sum(rows))
    for name in ("self_attn.qkv_proj.weight", "dual_path_moe.gate", "dual_path_moe.down"):
        weight = weights[f"layers.1.{name}"]
        count = weight.shape(checkpoint)[0]
        if some.stop <= count:
            assert torch.equal(weight.read(checkpoint, some), weight.read(checkpoint)[some])


# --- builds that go on ---------------------------------------------------------------------------------------------


def test_a_killed_build_goes_on_and_ends_in_the_same_bundle(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build_bundle: BuildBundle
) -> None:
    options = BuildOptions(small, tmp_path / "bundle", precision="int4")
    written: list[str] = []
    write_piece = weight_file._write_piece

    def dies_in_the_middle(piece: weight_file.Piece, *rest: object) -> str:
        if len(written) == 20:
            raise KeyboardInterrupt
        digest = write_piece(piece, *rest)  # type: ignore[arg-type]
        written.append(piece.name)
        return digest

    monkeypatch.setattr(weight_file, "_write_piece", dies_in_the_middle)
    with pytest.raises(KeyboardInterrupt):
        build(options, Console(quiet=True))
    partial = tmp_path / ".bundle.partial"
    journal = (partial / JOURNAL).read_text().splitlines()
    assert not options.output.exists() and len(journal) > 10

    # A kill in the middle of a line, and a page that a power failure lost.
    with (partial / JOURNAL).open("a") as file:
        file.write('{"piece": "dec')
    lost = json.loads(journal[5])["piece"]
    name, _, offset = lost.partition("@")
    with (partial / name).open("r+b") as data:
        data.seek(int(offset))
        data.write(b"\xff" * 8)

    first, written[:] = set(written), []
    monkeypatch.setattr(
        weight_file, "_write_piece", lambda *given: written.append(given[0].name) or write_piece(*given)
    )
    build(options, Console(quiet=True))
    assert lost in written and len(set(written) & first) <= 3, "what was written was written again"
    whole = build_bundle(small, precision="int4")
    assert contents(options.output) == contents(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_another_build_does_not_go_on_with_it(tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    with (
        pytest.raises(KeyboardInterrupt),
        bundle_folder(output, 10, "one", replace=False) as folder,
        folder.journal as journal,
    ):
        (folder.path / "weights").write_bytes(b"old")
        journal.record("weights@0", "0")
        raise KeyboardInterrupt
    assert Journal(tmp_path / ".bundle.partial", "one").known == {"weights@0": "0"}
    with pytest.raises(ZeroDivisionError), bundle_folder(output, 10, "two", replace=False) as folder:
        assert list(folder.path.iterdir()) == [] and not folder.journal.resumed
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == [], "a build that failed left something"


def test_two_builds_of_one_bundle_do_not_meet(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), bundle_folder(tmp_path / "bundle", 10, "one", replace=False) as folder:
        (folder.path / "weights").write_bytes(b"mine")
        with (
            pytest.raises(NotPossibleHere, match="Another build is writing"),
            bundle_folder(tmp_path / "bundle", 10, "one", replace=False),
        ):
            pass
        assert (folder.path / "weights").read_bytes() == b"mine"
        raise KeyboardInterrupt


# --- a layer at a time ---------------------------------------------------------------------------------------------


def test_the_streamed_model_is_the_model() -> None:
    """Bit for bit: the same modules on the same weights; a longer sequence beside it changes rounding only."""
    checkpoint = Checkpoint(golden.CHECKPOINT)
    whole, streamed = TorchBackend(checkpoint), TorchBackend(checkpoint, streamed=True)
    held, all_of_it = (
        sum(parameter.nbytes for parameter in backend.parts.decoder.parameters()) for backend in (streamed, whole)
    )
    assert held < all_of_it / 1000
    decoder = checkpoint.config.decoder
    rotary = MultimodalRotary(decoder.mrope_section, decoder.rope_theta)
    generator = np.random.default_rng(0)
    sequences = []
    for length in (9, 17):
        ids = generator.integers(0, decoder.vocab_size, length)
        np.testing.assert_array_equal(streamed.embed(ids), whole.embed(ids))
        angles = rotary.angles(np.tile(np.arange(length), (3, 1)))
        sequences.append(DecoderInput(whole.embed(ids), angles, np.array([0, length - 1])))
    for sequence, logits in zip(sequences, streamed.logits(sequences), strict=True):
        cache = new_cache(whole, len(sequence.embeddings))
        expected = whole.decode(sequence.embeddings, sequence.angles, 0, sequence.logit_rows, cache)
        np.testing.assert_allclose(logits, expected, atol=2e-5)
    case = golden.load("one_image_en")
    vision = checkpoint.config.vision
    turns = vision_angles(case.grids[0], vision.spatial_merge_size, vision.head_dim)
    np.testing.assert_array_equal(streamed.encode(case.patches()[0], turns), whole.encode(case.patches()[0], turns))


# --- what it takes -------------------------------------------------------------------------------------------------


def test_a_plan_tells_the_size_and_writes_nothing(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], build_bundle: BuildBundle
) -> None:
    options = ["--checkpoint", str(small), "--output", str(tmp_path / "new" / "bundle"), "--precision", "int4"]
    assert build_engines.main([*options, "--max-sequence", "1000", "--max-batch", "3", "--plan"]) == 0
    assert list(tmp_path.iterdir()) == []
    said = " ".join(capsys.readouterr().out.split())
    assert "--max-sequence 1000" in said and "KV caches" in said and "this machine has" in said
    manifest = Bundle(build_bundle(small, precision="int4", max_sequence=1000, max_batch=3)).manifest
    assert manifest.footprint is not None
    layers, heads, dim = (getattr(manifest.model, name) for name in ("num_layers", "num_kv_heads", "head_dim"))
    assert manifest.footprint.kv_cache_batch == 3 * 1008 * layers * heads * dim * 2 * 4
    weights = sum(file.bytes for file in manifest.all_files() if file.name.endswith((".data", ".bin")))
    assert manifest.footprint.weights == weights


def test_a_plan_says_what_is_missing(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=1000))
    assert build_engines.main(["--checkpoint", str(small), "--output", str(tmp_path / "bundle"), "--plan"]) == 0
    assert "MB of disk, this machine has 1.0 kB." in capsys.readouterr().out


def test_the_token_embedding_keeps_its_values(small: Path, build_bundle: BuildBundle, golden_bundle: Path) -> None:
    """int8 in blocks of 128: a step is 1/127 of a block's largest value, about 2.7, its error a root twelfth of that."""
    cases = [(small, build_bundle(small, precision="int4"), 8e-3), (golden.CHECKPOINT, golden_bundle, 0.0)]
    for checkpoint, folder, worst in cases:
        bundle = Bundle(folder)
        expected = TOKEN_EMBEDDING.read(Checkpoint(checkpoint)).numpy()
        ids = np.array([3, 1, 1000, 3])
        actual = OnnxRuntimeBackend(bundle).embed(ids)
        assert actual.dtype == np.float32
        assert np.linalg.norm(actual - expected[ids]) <= worst * np.linalg.norm(expected[ids])
        stages = [entry.relative_error for entry in bundle.manifest.parity if entry.stage == "token_embedding"]
        assert len(stages) == 2 and max(stages) <= worst


@pytest.mark.parametrize(("kv_cache", "item_size", "worst"), [("float16", 2, 1e-3), ("int8", 1, 0.05)])
def test_a_smaller_kv_cache(build_bundle: BuildBundle, kv_cache: str, item_size: int, worst: float) -> None:
    """float16 rounds to 11 bits; int8 has 127 levels for 1.5 times the samples' largest value, about 1 % of a typical one."""
    bundle = Bundle(build_bundle(kv_cache=kv_cache))
    spec, cache = bundle.manifest.model, new_cache(OnnxRuntimeBackend(bundle), 64)
    elements = 64 * spec.num_kv_heads * spec.head_dim
    for buffer in cache.buffers.values():
        assert buffer.nbytes == elements * item_size
    assert bundle.manifest.footprint is not None
    assert bundle.manifest.footprint.kv_cache * 64 == (
        2 * spec.num_layers * elements * item_size * bundle.manifest.limits.max_sequence
    )
    logits = [stage for stage in bundle.manifest.parity if stage.stage in ("prefill", "decode")]
    assert all(0 < stage.relative_error < worst for stage in logits), logits


def test_standard_operators_have_no_smaller_kv_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--checkpoint", str(golden.CHECKPOINT), "--output", str(tmp_path / "bundle")]
    assert build_engines.main([*options, "--target", "portable", "--kv-cache", "int8"]) == 2
    assert "choose --kv-cache float32" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_weights_are_mapped_not_copied(small: Path, build_bundle: BuildBundle) -> None:
    """The decoder's file stays a file mapping of the process that runs it."""
    bundle = Bundle(build_bundle(small, precision="int4"))
    backend = OnnxRuntimeBackend(bundle)
    backend.embed(np.array([0]))
    maps = Path("/proc/self/maps").read_text()
    mapped = 0
    for line in maps.splitlines():
        if line.endswith(str(bundle.path / "decoder.data")):
            first, last = (int(address, 16) for address in line.split()[0].split("-"))
            mapped += last - first
    assert mapped > 0.9 * (bundle.path / "decoder.data").stat().st_size


# --- the published layout ------------------------------------------------------------------------------------------


def test_the_full_size_generator_has_the_published_layout() -> None:
    published = json.loads((Path(__file__).parents[1] / "published" / "tensors.json").read_text())
    shapes = expected_tensors(EchoVLMConfig.from_json(published_config(), "config"))
    assert {name: list(shape) for name, shape in shapes.items()} == {
        name: tensor["shape"] for name, tensor in published["tensors"].items()
    }
    assert sum(map(math.prod, shapes.values())) == published["parameters"]
    cut = expected_tensors(EchoVLMConfig.from_json(published_config(2, 1), "config"))
    assert {name: shapes[name] for name in cut} == cut and "model.layers.1.coefficient.bias" in cut


def test_shards_are_safetensors_and_the_same_whatever_the_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maker, "CHUNK", 5000)
    monkeypatch.setattr(maker, "SHARD_BYTES", 1 << 19)
    made = [make_checkpoint(tmp_path / name, SMALL, dtype=torch.bfloat16) for name in ("one", "two")]
    assert contents(made[0]) == contents(made[1])
    checkpoint = Checkpoint(made[0])
    assert {info.dtype for info in checkpoint.tensors.values()} == {"BF16"}
    index = json.loads((made[0] / INDEX).read_text())
    assert len(set(index["weight_map"].values())) > 1
    for name, shard in index["weight_map"].items():
        with safe_open(made[0] / shard, "pt") as file:
            assert tuple(file.get_slice(name).get_shape()) == checkpoint.tensors[name].shape
    rows = checkpoint.read("model.layers.0.mlp.up_proj.weight").float()
    assert rows.std() == pytest.approx(0.7 / math.sqrt(128), rel=0.05)
    assert not torch.equal(rows[: len(rows) // 2], rows[len(rows) // 2 :])


def test_the_qwen_vocabulary_has_the_published_ids(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    config = published_config()
    named = {
        "<|vision_start|>": config["vision_start_token_id"],
        "<|vision_end|>": config["vision_end_token_id"],
        "<|image_pad|>": config["image_token_id"],
        "<|video_pad|>": config["video_token_id"],
        "<|im_end|>": config["eos_token_id"],
        "<|endoftext|>": config["bos_token_id"],
    }
    assert {token: tokenizer.token_to_id(token) for token in named} == named
    assert tokenizer.get_vocab_size() == FIRST_SPECIAL_ID + len(SPECIAL_TOKENS)
    # Token ids as Qwen2's published tokenizer gives them.
    assert tokenizer.encode("Hello, world!").ids == [9707, 11, 1879, 0]
    for text in ("右乳低回声结节，大小约 12×8 mm。", "The liver's echotexture\n\n is coarse."):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
