"""`echovlm-build --plan`: the sizes that a build will write, in units that fit them, without tracing."""

from __future__ import annotations

from pathlib import Path

import pytest

from echovlm_edge.export import build_engines
from echovlm_edge.export.bundle.planned_bundle import lower_parts
from echovlm_edge.export.graph.sketch import sketched_parts
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.export.targets import TARGETS, target
from echovlm_edge.export.weights.quantize import PrecisionPolicy
from tests.support.traces import shared_parts

DEMO = Path(__file__).parents[2] / "demo" / "checkpoint"


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("precision", ["int4", "int8", "fp16", "fp32"])
def test_a_sketch_lays_out_what_a_traced_part_does(name: str, precision: str) -> None:
    """Every file, weight, storage and place."""
    if precision not in TARGETS[name].precisions:
        pytest.skip("the target has no kernels for it")

    checkpoint, policy = Checkpoint(DEMO), PrecisionPolicy.of(precision, 64)
    planned, built = (
        [part.file for part in lower_parts(checkpoint, policy, target(name), graphs)]
        for graphs in (sketched_parts, shared_parts)
    )
    assert planned == built


def test_a_plan_traces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build_engines, "traced_parts", None)
    assert build_engines.main(["--checkpoint", str(DEMO), "--output", str(tmp_path / "bundle"), "--plan"]) == 0
    assert "decoder.data" in capsys.readouterr().out


def test_a_device_s_plan_is_not_judged_by_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--checkpoint", str(DEMO), "--target", "jetson-orin", "--output", "b", "--plan"]
    assert build_engines.main(command) == 0
    said = capsys.readouterr().out
    assert "Orin" in said and "serves it, not this machine. It has 64 GB" in said
    assert said.count("free on this machine") == 1, "the disk's alone"
