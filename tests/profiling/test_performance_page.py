"""docs/performance.md is written from a run's figures: ours beside the others', nothing by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import performance
from benchmarks.profiling_checks import measured
from echovlm_edge.runtime.profiling import schema
from tests.support.profiles import profile

ROOT = Path(__file__).parents[2]


def test_every_figure_comes_from_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    implementations = {"ours": 2.0, "onnxruntime": 3.0, "torch_fp32": 20.0, "torch_bf16": 10.0}
    rows = [{"impl": name, "tokens": 8, "ms": ms, "gbps": 15.0, "gops": 90.0} for name, ms in implementations.items()]
    stages = {"PyTorch eager float32": 0.4, "bundle int4": 0.1}
    results = {
        "dual_path_moe": {"machine": {"read_gbps": 30.0, "int8_gops": 900.0, "threads": 2, "cpu": "c"}, "rows": rows},
        "decoder": {
            "machine": {"read_gbps": 30.0, "int8_gops": 900.0, "threads": 2, "cpu": "c"},
            "decoder": [
                {"impl": name, "phase": phase, "tokens_per_second": rate, "share_outside_moe": 0.125}
                for name, factor in (("ours", 1), ("llama.cpp", 0.5))
                for phase, rate in (("decode", 48 * factor), ("prefill", 240 * factor))
            ],
        },
        "stages": {
            "machine": {"threads": 2},
            "prompt_tokens": 493,
            "stages": {name: dict.fromkeys(performance.STAGES, seconds) for name, seconds in stages.items()},
        },
        "profile": schema.dump(profile(0)),
        "checks": [{"what": "on", "first": 1, "second": 1, "change": 0.001, "low": -0.01, "high": 0.012, "runs": 9}],
    }
    report = {
        "created": "2026-01-01",
        "machine": {"cpu": "a CPU", "gpu": None, "toolchain": {"numpy": "2"}},
        "benchmarks": {
            name: {"measured": "2026-01-01", "result": json.loads(json.dumps(r))} for name, r in results.items()
        },
    }
    (tmp_path / "bench.json").write_text(json.dumps(report))
    output = tmp_path / "performance.md"
    monkeypatch.setattr(sys, "argv", ["performance", str(tmp_path / "bench.json"), "--output", str(output)])
    assert performance.main() == 0
    page = output.read_text()
    assert "| 8 | 2.00 | 3.00 (1.50x) | 20.00 (10.00x) | 10.00 (5.00x) | 50% | 10% |" in page
    assert "| prefill | 240.0 | 12% | 120.0 |" in page
    assert "| decode, a token | 400.0 | 100.0 (4.00x) |" in page
    assert "| W1: a 640x480 frame" in page and "decode, 4" in page and "| unknown |" in page
    assert "| on | +0.10% | -1.00% to +1.20% | 9 |" in page and "| cpu | a CPU |" in page and "gpu" not in page


def test_ways_are_compared_in_alternation() -> None:
    """A machine that gets slower and slower slows both: what differs between the two is seen all the same."""
    turn = iter(range(1000))

    def taken(factor: float) -> float:
        return factor * (1 + 0.05 * next(turn))

    check = measured("a tenth", 30, (lambda: taken(1.0), lambda: taken(1.1)))
    assert check.low < 0.1 < check.high and check.high - check.low < 0.06
