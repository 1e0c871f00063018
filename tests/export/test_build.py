"""`echovlm-build`: what it refuses, by name, and that it leaves nothing half-written."""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from echovlm_edge.export import build_engines
from echovlm_edge.export.build_options import BuildOptions
from echovlm_edge.export.engines import onnxruntime
from echovlm_edge.export.source.checkpoint import INDEX, Checkpoint, expected_tensors
from echovlm_edge.export.source.checkpoint_hash import hashing
from echovlm_edge.export.source.config import EchoVLMConfig
from echovlm_edge.runtime.bundle.manifest import MANIFEST, Bundle
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from tests.support import golden
from tests.support.waiting import wait_for

Change = Callable[[Path], None]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the golden checkpoint to break."""
    return Path(shutil.copytree(golden.CHECKPOINT, tmp_path / "checkpoint"))


def edit_config(**changes: object) -> Change:
    def change(checkpoint: Path) -> None:
        file = checkpoint / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


def edit_shard(edit: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def change(checkpoint: Path) -> None:
        file = checkpoint / "model-00004-of-00007.safetensors"
        tensors = load_file(file)
        edit(tensors)
        save_file(tensors, file)

    return change


def truncate(checkpoint: Path) -> None:
    file = checkpoint / "model-00002-of-00007.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


ROUTER = "model.layers.0.moe.gate.weight"
BROKEN: dict[str, tuple[Change, str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "config is no JSON": (
        lambda folder: (folder / "config.json").write_text("{"),
        "config.json cannot be read as JSON",
    ),
    "architecture": (edit_config(architectures=["LlamaForCausalLM"]), "LlamaForCausalLM"),
    "missing key": (edit_config(rope_scaling={}), "lacks the key 'mrope_section'"),
    "wrong widths": (edit_config(num_attention_heads=5), "head_dim|num_key_value_heads"),
    "truncated shard": (truncate, "model-00002-of-00007.safetensors is truncated"),
    "missing shard": (lambda folder: (folder / "model-00003-of-00007.safetensors").unlink(), "model-00003-of-00007"),
    "missing index": (lambda folder: (folder / INDEX).unlink(), "weights are missing"),
    "missing tensor": (edit_shard(lambda tensors: tensors.pop(ROUTER)), f"lacks the tensor {ROUTER}"),
    "surplus tensor": (edit_shard(lambda tensors: tensors.update(extra=torch.ones(2))), "surplus tensor extra"),
    "wrong shape": (
        edit_shard(lambda tensors: tensors.update({ROUTER: torch.ones(5, 96)})),
        rf"{ROUTER}.*\[5, 96\].*\[4, 96\]",
    ),
    "no tokenizer": (
        lambda folder: [(folder / name).unlink() for name in ("tokenizer.json", "vocab.json")] and None,
        "has no tokenizer.json",
    ),
}


def run_build(checkpoint: Path, output: Path, *options: str) -> int:
    return build_engines.main(
        ["--checkpoint", str(checkpoint), "--output", str(output), "--precision", "fp32", *options]
    )


@pytest.mark.parametrize("kind", BROKEN)
def test_a_bad_checkpoint_is_refused_by_name(
    kind: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, sentence = BROKEN[kind]
    change(checkpoint)
    assert run_build(checkpoint, tmp_path / "bundle") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and re.search(sentence, error), error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"], "something half-written stayed"


def test_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_build(tmp_path / "nowhere", tmp_path / "bundle") == 2
    assert "no checkpoint folder" in capsys.readouterr().err


def test_a_folder_that_is_no_bundle_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("do not delete")
    assert run_build(golden.CHECKPOINT, tmp_path) == 2
    assert "is no bundle" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "do not delete"


def test_a_full_disk_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The kernel refuses to write a file further than the limit, as it refuses on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        code = run_build(golden.CHECKPOINT, tmp_path / "bundle")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capsys.readouterr().err
    assert code == 2, said
    assert "could not be written: a file-size limit is reached" in said and "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_too_small_a_disk_is_refused_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=1000))
    assert run_build(golden.CHECKPOINT, tmp_path / "bundle") == 2
    assert "make room" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_killed_build_leaves_no_bundle_and_the_next_one_finishes(tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    command = [sys.executable, "-m", "echovlm_edge.export.build_engines"]
    started = subprocess.Popen(
        [*command, "--checkpoint", str(golden.CHECKPOINT), "--output", str(output), "--precision", "fp32"],
        stderr=subprocess.DEVNULL,
    )
    partial = tmp_path / ".bundle.partial"
    wait_for(lambda: partial.exists() or started.poll() is not None)
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert not output.exists()
    assert run_build(golden.CHECKPOINT, output) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    Bundle(output, verify=True)


def test_an_engine_out_of_parity_fails_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A lowering that computes something else is caught by the bundle's own parity."""

    def wrong_gelu(lowering: object, node: object) -> object:
        return [lowering.node("QuickGelu", node.inputs, {"alpha": 1.6}, "com.microsoft")]  # type: ignore[attr-defined]

    for rules in (onnxruntime.NATIVE, onnxruntime.SPELLED_OUT):  # whichever this install builds with
        monkeypatch.setitem(rules, "QuickGelu", wrong_gelu)  # type: ignore[arg-type]
        monkeypatch.delitem(rules, "MLP", raising=False)  # type: ignore[arg-type]
    assert run_build(golden.CHECKPOINT, tmp_path / "bundle") == 2
    assert "vision_encoder differs from the PyTorch model" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def nothing_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing and hashing fail the test: what is refused must be refused before them."""

    def too_late(*_: object) -> None:
        raise AssertionError("work was done before the refusal")

    monkeypatch.setattr(build_engines, "traced_parts", too_late)
    monkeypatch.setattr(build_engines, "hashing", too_late)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("damaged", [False, True])
def test_an_existing_bundle_is_refused_before_any_work(
    golden_bundle: Path,
    tmp_path: Path,
    precision: str,
    damaged: bool,
    nothing_slow: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = Path(shutil.copytree(golden_bundle, tmp_path / "bundle"))
    if damaged:
        (output / MANIFEST).write_text("{")
    before = {file.name: file.read_bytes() for file in output.iterdir()}
    assert run_build(golden.CHECKPOINT, output, "--precision", precision) == 2
    said = capsys.readouterr().err
    assert "--replace" in said and str(output) in said and ("golden, fp32 for cpu" in said) is not damaged
    assert {file.name: file.read_bytes() for file in output.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_what_is_no_bundle_is_refused_before_any_work(
    tmp_path: Path, nothing_slow: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("do not delete")
    (tmp_path / "file").write_text("do not delete")
    for output, sentence in {
        tmp_path / "thesis": "is no bundle",
        tmp_path / "file": "is no bundle",
        tmp_path / "file" / "bundle": "file is no folder",
    }.items():
        assert run_build(golden.CHECKPOINT, output, "--replace") == 2
        assert sentence in capsys.readouterr().err
    assert (tmp_path / "thesis" / "thesis.tex").read_text() == (tmp_path / "file").read_text() == "do not delete"


def test_a_rebuild_that_was_asked_for_replaces_the_bundle_and_is_the_same(golden_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    output.mkdir()  # an empty folder is free
    for _ in range(2):
        assert run_build(golden.CHECKPOINT, output, "--replace") == 0
    first, again = Bundle(golden_bundle).manifest, Bundle(output).manifest
    assert again.bundle_id == first.bundle_id and again.source == first.source


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ("--max-sequence", "99999"),
            r"--max-sequence 99999 .* between 1 and 32768, its config.json's max_position_embeddings",
        ),
        (("--max-sequence", "0"), "--max-sequence 0 "),
        (("--max-sequence", "-5"), "--max-sequence -5 "),
        (("--max-batch", "0"), "--max-batch 0 .* at least 1"),
        (("--name", ""), "'' cannot stand in a report"),
        (("--name", "two\nlines"), "cannot stand in a report"),
        (("--name", "a\\b"), "without a backslash"),
        (("--name", "x" * 65), "of 1 to 64"),
    ],
)
@pytest.mark.parametrize("planned", [False, True])
def test_options_that_no_bundle_can_have_are_refused_before_any_work(
    options: tuple[str, ...],
    sentence: str,
    planned: bool,
    tmp_path: Path,
    nothing_slow: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_build(golden.CHECKPOINT, tmp_path / "bundle", *options, *(["--plan"] if planned else [])) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.search(sentence, error), error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("EchoVLM", "EchoVLM"),
        ("demo/checkpoint", "demo"),
        ("run/checkpoint-500", "checkpoint-500"),
        ("models--chaoyinshe--EchoVLM/snapshots/0123456789abcdef", "EchoVLM"),
        ("snapshots/monday", "monday"),
    ],
)
def test_a_model_is_called_what_its_folder_says(folder: str, name: str, tmp_path: Path) -> None:
    assert BuildOptions(tmp_path / folder, tmp_path).model_name() == name
    assert BuildOptions(tmp_path / folder, tmp_path, name="Echo 2").model_name() == "Echo 2"


def test_the_name_and_the_hash_are_those_of_the_service(checkpoint: Path, tmp_path: Path) -> None:
    """The hash is what coreutils compute over config and weights: one changed weight changes it, a resumed build does not."""
    shown = []
    for change in (lambda _: None, edit_shard(lambda tensors: tensors[ROUTER].add_(1))):
        change(checkpoint)
        assert run_build(checkpoint, tmp_path / "bundle", "--name", "Echo 2", "--replace") == 0
        source = Bundle(tmp_path / "bundle").manifest.source
        command = "sha256sum config.json model*.safetensors | sha256sum"
        listed = subprocess.run(command, shell=True, cwd=checkpoint, capture_output=True, text=True, check=True)
        assert source.name == "Echo 2" and f"{source.sha256}  -\n" == listed.stdout
        engine = ReportEngine.open(tmp_path / "bundle")
        assert (engine.info.model, engine.info.checkpoint_sha256) == ("Echo 2", source.sha256)
        engine.close()
        shown.append(source.sha256)
    assert shown[0] != shown[1]


def test_a_shard_that_cannot_be_read_is_named(checkpoint: Path) -> None:
    opened = Checkpoint(checkpoint)
    (checkpoint / "model-00003-of-00007.safetensors").unlink()
    with hashing(opened) as (_, sha256), pytest.raises(NotPossibleHere, match=r"model-00003-of-00007.* cannot be read"):
        sha256.result()


def test_run_as_a_file_and_through_optimum(tmp_path: Path) -> None:
    script = Path(build_engines.__file__)
    optimum = Path(sys.executable).with_name("optimum-cli")
    for command in ([sys.executable, script], [optimum, "export", "echovlm"]):
        done = subprocess.run([*map(str, command), "--help"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert all(option in done.stdout for option in ("--checkpoint", "--replace", "--name"))


def test_bundle_json_tells_what_an_integrator_asks(golden_bundle: Path) -> None:
    told = json.loads((golden_bundle / MANIFEST).read_text())
    assert told["source"]["name"] == "golden"
    assert {"torch", "onnx", "onnxruntime", "echovlm-edge"} <= set(told["toolchain"])
    decoder = next(part for part in told["parts"] if part["name"] == "decoder")
    inputs = {tensor["name"]: tensor["shape"] for tensor in decoder["inputs"]}
    assert inputs["embeddings"] == ["batch", "sequence", 96] and inputs["keys.2"] == ["slots", 2, "blocks", 16, 16]
    assert all(len(file["sha256"]) == 64 for part in told["parts"] for file in part["files"])


def test_the_published_checkpoints_every_tensor_is_expected() -> None:
    published = Path(__file__).parents[1] / "published"
    config = EchoVLMConfig.from_json(json.loads((published / "config.json").read_text()), "config.json")
    tensors = json.loads((published / "tensors.json").read_text())["tensors"]
    assert expected_tensors(config) == {name: tuple(tensor["shape"]) for name, tensor in tensors.items()}


def damage(file: str, edit: Callable[[bytes], bytes]) -> Change:
    def change(bundle: Path) -> None:
        (bundle / file).write_bytes(edit((bundle / file).read_bytes()))

    return change


def edit_manifest(**changes: object) -> Change:
    return damage(MANIFEST, lambda raw: json.dumps({**json.loads(raw), **changes}).encode())


CORRUPT: dict[str, tuple[Change, str]] = {
    "no manifest": (lambda bundle: (bundle / MANIFEST).unlink(), "There is no bundle at"),
    "newer": (edit_manifest(format=2), "format 2, newer than 1.*update echovlm-edge"),
    "not JSON": (damage(MANIFEST, lambda raw: raw[:50]), "bundle.json is damaged"),
    "wrong field": (edit_manifest(limits={"max_sequence": "many", "max_batch": 1}), "damaged at limits.max_sequence"),
    "missing file": (lambda bundle: (bundle / "decoder.data").unlink(), "decoder.data is missing"),
    "truncated": (damage("decoder.data", lambda raw: raw[:-1]), r"decoder.data has \d+ bytes instead of"),
    "flipped bit": (
        damage("projector.data", lambda raw: raw[:99] + bytes([raw[99] ^ 1]) + raw[100:]),
        "projector.data has changed",
    ),
}


@pytest.mark.parametrize("kind", CORRUPT)
def test_a_corrupt_bundle_is_refused_by_name(kind: str, golden_bundle: Path, tmp_path: Path) -> None:
    change, sentence = CORRUPT[kind]
    bundle = Path(shutil.copytree(golden_bundle, tmp_path / "bundle"))
    change(bundle)
    with pytest.raises(NotPossibleHere, match=sentence):
        Bundle(bundle, verify=True)
