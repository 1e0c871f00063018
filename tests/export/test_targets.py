"""Targets: what each can do, where its engines are built, and that the documentation knows them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from echovlm_edge.export import build_engines, targets
from echovlm_edge.export.targets import TARGETS, target
from echovlm_edge.plugins.dual_path_moe.cuda import resources
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from tests.support import golden

ROOT = Path(__file__).parents[2]
DEVICES = ("jetson-orin", "jetson-orin-nano", "jetson-thor", "igx-orin", "dgx-spark")


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


@pytest.mark.parametrize("precision", ["int4", "fp16"])
def test_graphs_for_onnx_runtime_on_a_gpu(precision: str, build_bundle: object) -> None:
    """Its operators, float16 caches, parity of the graph on this CPU; what the GPU computes is for tests/gpu."""
    manifest = Bundle(build_bundle(ROOT / "demo" / "checkpoint", target="cuda", precision=precision)).manifest  # type: ignore[operator]
    decoder = manifest.part("decoder")
    assert decoder.operators["com.microsoft::GroupQueryAttention"] == 3
    assert ("com.microsoft::MatMulNBits" in decoder.operators) == (precision == "int4")
    assert {tensor.dtype for tensor in decoder.inputs if tensor.name.startswith("keys.")} == {"float16"}
    assert manifest.parity_of == "graphs" and manifest.operator_library is None
    worst = max(stage.relative_error for stage in manifest.parity)
    assert worst < (2e-3 if precision == "fp16" else 0.25), "the cpu target's int4 bundle is at 0.16 on this frame"
