"""Targets: what each can do, where its engines are built, and that the documentation knows them all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from rich.console import Console

from echovlm_edge.export import build_engines, targets
from echovlm_edge.export.build_engines import BuildOptions, build
from echovlm_edge.export.bundle.planned_bundle import lower_parts
from echovlm_edge.export.graph.sketch import sketched_parts
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.export.targets import TARGETS, target
from echovlm_edge.export.weights.quantize import PrecisionPolicy
from echovlm_edge.plugins.dual_path_moe.cuda import resources
from echovlm_edge.plugins.dual_path_moe.library import OPERATOR_LIBRARY, library_path
from echovlm_edge.runtime.bundle.manifest import Bundle, Manifest
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from tests.support import golden

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "demo" / "checkpoint"
DEVICES = ("jetson-orin", "jetson-orin-nano", "jetson-thor", "igx-orin", "dgx-spark")

needs_library = pytest.mark.skipif(library_path() is None, reason="installed without a C++ compiler")


def test_the_promised_targets_are_there() -> None:
    assert {"cpu", "cuda", "rtx", *DEVICES} <= set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_is_documented(name: str) -> None:
    assert f"`{name}`" in (ROOT / "docs" / "targets.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["rtx", *DEVICES])
def test_kernels_are_compiled_for_the_targets_gpu(name: str) -> None:
    device = TARGETS[name].device
    assert device and device.compute_capability
    major, minor = device.compute_capability
    assert 10 * major + minor in resources.SHARED_LIMIT


@pytest.mark.parametrize(
    ("name", "precision"), [("rtx", "int8"), ("rtx", "fp32"), ("jetson-orin", "int8"), ("cuda", "fp32")]
)
def test_a_precision_without_kernels_is_refused(
    name: str, precision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--checkpoint", str(golden.CHECKPOINT), "--output", str(tmp_path / "bundle")]
    assert build_engines.main([*command, "--target", name, "--precision", precision]) == 2
    assert f"{name} has no kernels for {precision}: choose --precision int4 or" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("machine", "gpu", "here"),
    [
        ("aarch64", (8, 7), True),
        ("aarch64", (11, 0), False),
        ("aarch64", None, False),
        ("x86_64", (8, 7), False),
    ],
)
def test_a_devices_engines_are_built_on_a_device_of_its_kind(
    machine: str, gpu: tuple[int, int] | None, here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(targets, "compute_capability", lambda: gpu)
    assert target("jetson-orin").builds_here() is here
    assert target("rtx").builds_here() and target("cpu").builds_here()


def test_no_such_target() -> None:
    with pytest.raises(NotPossibleHere, match="no target tpu: choose one of cpu"):
        target("tpu")


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Say whether this install has kernels for GPUs."""
    return lambda found: monkeypatch.setattr(targets, "has_gpu_kernels", lambda: found)


def built_for_cuda(folder: Path, precision: str) -> Manifest:
    """A bundle for the target cuda, from the demo's checkpoint."""
    build(BuildOptions(DEMO, folder, target="cuda", precision=precision), Console(quiet=True))
    return Bundle(folder).manifest


def worst(manifest: Manifest) -> float:
    """The largest relative error of a stage."""
    assert manifest.parity_of == "graphs"
    return max(stage.relative_error for stage in manifest.parity)


@needs_library
@pytest.mark.parametrize("precision", ["int4", "fp16"])
def test_with_kernels_cuda_has_our_operator(precision: str, tmp_path: Path, kernels: Callable[[bool], None]) -> None:
    """In float16, its weights packed as the kernels read them; ONNX Runtime's operators for all else, float16 caches."""
    kernels(True)
    manifest = built_for_cuda(tmp_path / "bundle", precision)
    decoder = manifest.part("decoder")
    assert decoder.operators["echovlm::DualPathMoE"] == decoder.operators["com.microsoft::GroupQueryAttention"] == 3
    assert not any("echovlm" in name for part in manifest.parts[:2] for name in part.operators)
    assert manifest.operator_library == OPERATOR_LIBRARY
    graph = onnx.load(tmp_path / "bundle" / "decoder.onnx", load_external_data=False).graph
    types = {value.name: value.data_type for value in graph.initializer}
    node = next(node for node in graph.node if node.op_type == "DualPathMoE")
    half, packed, scale = onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8, onnx.TensorProto.FLOAT
    head = next(node for node in graph.node if any(name.startswith("lm_head.weight") for name in node.input))
    assert [a.i for a in head.attribute if a.name == "bits"] == ([8] if precision == "int4" else [])
    expected = [half] * 4 + ([packed] * 3 + [scale] * 3 if precision == "int4" else [half] * 3)
    assert [types[name] for name in node.input[1:]] == expected
    assert worst(manifest) < (2e-3 if precision == "fp16" else 0.25), (
        "the cpu target's int4 bundle is at 0.16 on this frame"
    )


@pytest.mark.parametrize("precision", ["int4", "fp16"])
def test_without_kernels_cuda_is_spelled_out_and_says_what_that_costs(
    precision: str, kernels: Callable[[bool], None], tmp_path: Path
) -> None:
    kernels(False)
    manifest = built_for_cuda(tmp_path / "bundle", precision)
    decoder = manifest.part("decoder")
    assert decoder.operators["com.microsoft::GroupQueryAttention"] == 3
    assert ("com.microsoft::MatMulNBits" in decoder.operators) == (precision == "int4")
    assert {tensor.dtype for tensor in decoder.inputs if tensor.name.startswith("keys.")} == {"float16"}
    assert manifest.operator_library is None
    assert worst(manifest) < (2e-3 if precision == "fp16" else 0.25), (
        "the cpu target's int4 bundle is at 0.16 on this frame"
    )
    warning = target("cuda").warning_about(None)
    assert (
        "without GPU kernels" in warning and "a tenth more weights" in warning and "ECHOVLM_CUDA_KERNELS=ON" in warning
    )


def test_weights_that_the_kernels_do_not_take_are_spelled_out(
    tmp_path: Path, kernels: Callable[[bool], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Here widths that are no multiples of 64."""
    kernels(True)
    command = ["--checkpoint", str(golden.CHECKPOINT), "--output", str(tmp_path / "bundle"), "--target", "cuda"]
    assert build_engines.main(command) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "GPU kernels take int4 in blocks of 64 or 128, or fp16" in said and "a tenth more weights" in said
    manifest = Bundle(tmp_path / "bundle").manifest
    assert manifest.operator_library is None
    assert not any(name.startswith("echovlm") for part in manifest.parts for name in part.operators)


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize(("precision", "block_size"), [("int8", 128), ("int4", 32)])
def test_precisions_that_the_kernels_do_not_take_are_spelled_out(
    precision: str, block_size: int, installed: bool, kernels: Callable[[bool], None]
) -> None:
    """8 bits are not worth compiling kernels for, so that the warning does not ask for that."""
    kernels(installed)
    chosen = target("cuda", precision=precision)
    policy = PrecisionPolicy.of(precision, block_size, "float16")
    (decoder,) = (
        part for part in lower_parts(Checkpoint(DEMO), policy, chosen, sketched_parts) if part.name == "decoder"
    )
    assert not any(node.domain == "echovlm" for node in decoder.model.graph)
    assert ("ECHOVLM_CUDA_KERNELS" in chosen.warning_about(None)) == (precision == "int4" and not installed)


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_operators_are_spelled_out_when_asked_for(name: str, kernels: Callable[[bool], None]) -> None:
    kernels(True)
    asked = target(name, spell_out=True)
    assert asked.operator_library is None and asked.warning.startswith("as --spell-out asks, DualPathMoE is built from")
    assert target(name).operator_library == OPERATOR_LIBRARY or library_path() is None


def test_an_engine_cannot_be_spelled_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--checkpoint", str(DEMO), "--output", str(tmp_path / "bundle"), "--target", "rtx", "--spell-out"]
    assert build_engines.main(command) == 2
    assert "leave --spell-out away, or choose --target cuda" in capsys.readouterr().err
