"""Estimates: the bytes are those that a build stores, the bounds are the roofline's, and every output says what it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from echovlm_edge.export import targets
from echovlm_edge.export.bundle.planned_bundle import lower_parts
from echovlm_edge.export.devices import CPU, ORIN, Device
from echovlm_edge.export.estimate.__main__ import main
from echovlm_edge.export.estimate.estimating import estimate
from echovlm_edge.export.estimate.roofline import Roofline, bound_by, bound_seconds, expected_seconds
from echovlm_edge.export.graph.sketch import sketched_parts
from echovlm_edge.export.source.checkpoint import expected_tensors
from echovlm_edge.export.source.config import EchoVLMConfig
from echovlm_edge.export.targets import TARGETS, target
from echovlm_edge.export.weights.quantize import PrecisionPolicy
from echovlm_edge.runtime.bundle.cost_model import Cost
from echovlm_edge.runtime.profiling.workloads import NAMED

PUBLISHED = Path(__file__).parents[1] / "published" / "config.json"


def roofline(name: str, precision: str = "int4", **changes: object) -> Roofline:
    config = {**json.loads(PUBLISHED.read_text()), **changes}
    return Roofline.of(config, target(name), PrecisionPolicy.of(precision, 128), 4096)


@pytest.mark.parametrize(("name", "precision"), [("cpu", "int4"), ("rtx", "int4"), ("cuda", "int4"), ("cuda", "int8")])
@pytest.mark.parametrize("kernels", [True, False])
def test_weights_are_those_that_a_build_stores(
    name: str, precision: str, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the published widths, one layer deep; norms, biases and gates are what is left out."""
    monkeypatch.setattr(targets, "has_gpu_kernels", lambda: kernels)
    vision = {**json.loads(PUBLISHED.read_text())["vision_config"], "depth": 1}
    changes = {"num_hidden_layers": 1, "vision_config": vision}
    config = EchoVLMConfig.from_json({**json.loads(PUBLISHED.read_text()), **changes}, "config")
    shapes = {tensor: SimpleNamespace(shape=shape) for tensor, shape in expected_tensors(config).items()}
    checkpoint = SimpleNamespace(config=config, tensors=shapes)
    estimated = roofline(name, precision, **changes).costs.weight_bytes()
    lowered = lower_parts(checkpoint, PrecisionPolicy.of(precision, 128), target(name), sketched_parts)  # type: ignore[arg-type]
    for part in lowered:
        assert estimated[part.name] == pytest.approx(part.file.bytes, rel=0.01), part.name


def test_mixed_bits_are_read_with_the_decoders_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = roofline("cpu")
    base, mixed = (replace(plain, bits=bits).costs.weight_bytes() for bits in (4.125, 4.625))
    assert base == plain.costs.weight_bytes()
    layers = 28 * (3584 * 4608 + 3584 * 3584 + 3 * 3584 * (18944 + 5632 + 4 * 1408))
    assert mixed["decoder"] - base["decoder"] == pytest.approx(layers * 0.5 / 8)
    command = ["--config", str(PUBLISHED), "--target", "cpu", "--json", str(tmp_path / "estimate.json")]
    for options in (["--bits", "3"], ["--bits", "9"], ["--bits", "8.1", "--precision", "int8"]):
        assert main([*command, *options]) == 2
        assert "is no mix of 4 and 8 bits" in capsys.readouterr().err
    assert main([*command, "--bits", "4.25"]) == 0


def test_a_token_reads_the_layer_that_was_measured() -> None:
    """One layer's DualPathMoE takes one token 3.33 ms at 96 % of 47.4 GB/s on two cores (benchmarks/dual_path_moe.py)."""
    model = roofline("cpu")
    weights = model.costs.moe_weights_read(1)
    assert weights == 3 * 3584 * (18944 + 5632 + 2 * 1408)
    assert weights * model.bytes_per_weight("decoder", "gate", [3584]) == pytest.approx(
        0.96 * 47.4e9 * 3.33e-3, rel=0.02
    )


def test_spelled_out_every_expert_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = 3 * 3584 * (18944 + 5632 + 4 * 1408)
    assert roofline("rtx").costs.moe_weights_read(1) < everything
    monkeypatch.setattr(targets, "has_gpu_kernels", lambda: False)
    assert roofline("cuda").costs.moe_weights_read(1) == everything
    monkeypatch.setattr(targets, "has_gpu_kernels", lambda: True)
    assert roofline("cuda").costs.moe_weights_read(1) < everything
    assert roofline("cuda", "int8").costs.moe_weights_read(1) == everything


def test_the_bound_is_the_slower_of_memory_and_arithmetic() -> None:
    device = Device("a device", None, 8, False, bandwidth_gbs=100, tensor_tflops=10, source="made up")
    reading, computing = Cost(100e9, 1e12), Cost(10e9, 30e12)
    assert bound_seconds(reading, device) == pytest.approx(1.0) and bound_by(reading, device) == "memory"
    assert bound_seconds(computing, device) == pytest.approx(3.0) and bound_by(computing, device) == "arithmetic"
    assert expected_seconds(computing, device, 0.5) == pytest.approx(6.0)


@pytest.mark.parametrize(("workload", "first", "speed"), [("W1", 10, 6.1), ("W7", 53, None)])
def test_a_cpu_is_estimated_as_it_was_measured(workload: str, first: float, speed: float | None) -> None:
    """The published size, int4, two cores, benchmarks/full.py; one share for each kind of stage leaves some 15 %."""
    (found,) = (outcome for outcome in estimate(roofline("cpu"), "int4").outcomes if outcome.workload == workload)
    assert found.first_token_seconds == pytest.approx(first, rel=0.15)
    if speed:
        assert found.tokens_per_second == pytest.approx(speed, rel=0.05)


def test_no_context_beyond_the_models_is_estimated(capsys: pytest.CaptureFixture[str]) -> None:
    demo = Path(__file__).parents[2] / "demo" / "checkpoint" / "config.json"
    assert main(["--config", str(demo), "--target", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "2,048" in said and "4,096" not in said
    for tokens in ("99999", "0"):
        assert main(["--config", str(demo), "--target", "cpu", "--max-sequence", tokens]) == 2
        assert "between 1 and 2048" in capsys.readouterr().err


def test_workloads_of_the_trained_size_are_estimated_when_asked_for() -> None:
    names = ["W1", "W1-196", "W7-196", "Q-196"]
    found = estimate(roofline("jetson-orin"), "int4", [NAMED[name] for name in names])
    assert [outcome.workload for outcome in found.outcomes] == names
    large, small, *_ = found.outcomes
    assert small.first_token_seconds < 0.6 * large.first_token_seconds


def test_decode_is_bound_by_memory_and_prefill_by_arithmetic() -> None:
    found = estimate(roofline("jetson-orin"), "int4")
    bounds = {(stage.workload, stage.stage): stage.bound for stage in found.stages}
    assert bounds["W7", "prefill"] == bounds["W1", "images"] == "arithmetic"
    assert bounds["W1", "decode"] == bounds["Q", "decode"] == bounds["Q", "prefill"] == "memory"
    # All weights that a token needs are read once: 28 layers of some 170 MB and the head's 0.56 GB, at 205 GB/s.
    per_token = next(stage for stage in found.stages if (stage.workload, stage.stage) == ("W1", "decode"))
    assert per_token.read_gb / 159 == pytest.approx(28 * 0.17 + 0.56 + 0.235, rel=0.05)
    assert per_token.roofline_seconds == pytest.approx(per_token.read_gb / ORIN.bandwidth_gbs)


def test_a_longer_context_costs_memory_and_a_smaller_device_refuses_it() -> None:
    found = estimate(roofline("jetson-orin-nano"), "int4")
    sizes = list(found.memory_gb.values())
    assert sizes == sorted(sizes) and sizes[-1] - sizes[0] == pytest.approx((32768 - 1024) * 2 * 28 * 4 * 128 * 2 / 1e9)
    assert not found.fits and estimate(roofline("jetson-orin"), "int4").fits


def test_shared_memory_leaves_room_for_the_system() -> None:
    assert ORIN.usable_gb == 56 and replace(CPU, memory_gb=8).usable_gb == 6.5


def test_every_output_says_that_it_is_an_estimate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")
    files = tmp_path / "estimate.json", tmp_path / "estimate.svg"
    options = ["--config", str(PUBLISHED), "--target", "jetson-thor", "jetson-orin-nano"]
    assert main([*options, "--json", str(files[0]), "--plot", str(files[1])]) == 0
    told = capsys.readouterr().out
    tables = told.count("ESTIMATE, not measured")
    assert tables == 2 + 2 + 1, "a title and a foot for each target, and the comparison's title"
    assert "does not fit" in told and "(assumed)" in told
    assert json.loads(files[0].read_text())["note"] == "ESTIMATE, not measured"
    picture = files[1].read_text()
    assert "ESTIMATE, not measured" in picture and "Jetson Thor" in picture


def test_a_bundle_is_estimated_for_another_target(golden_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--bundle", str(golden_bundle), "--target", "cpu"]) == 0
    assert "fp32 on two cores" in capsys.readouterr().out
    assert main(["--bundle", str(golden_bundle), "--target", "rtx"]) == 2
    assert "no kernels for fp32" in capsys.readouterr().err


def test_what_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(tmp_path / "config.json")]) == 2
    assert "config.json cannot be read" in capsys.readouterr().err
    assert main(["--config", str(PUBLISHED), "--plot", str(tmp_path / "none" / "plot.png")]) == 2
    assert "plot.png cannot be written" in capsys.readouterr().err


def test_every_target_for_a_machine_can_be_estimated() -> None:
    for name, known in TARGETS.items():
        if known.device:
            assert estimate(roofline(name), "int4").outcomes
