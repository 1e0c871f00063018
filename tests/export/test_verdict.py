"""The build's verdicts: one table of thresholds, documented where it stands, and the worst figure of the worst image counts."""

from __future__ import annotations

import re
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from echovlm_edge.export import show
from echovlm_edge.export.parity import verdict
from echovlm_edge.export.parity.verdict import FORMATS, KL_DIVERGENCE, RELATIVE_ERROR, Verdict, format_of, judge
from echovlm_edge.runtime.bundle.manifest import Bundle, Manifest, Parity

DEMO = Path(__file__).parents[2] / "demo" / "checkpoint"


def stage(relative: float, divergence: float | None = None) -> Parity:
    return Parity("decode", "an image", 1.0, 1.0, 1.0, relative, None if divergence is None else 1.0, divergence)


def test_the_docstring_states_the_thresholds() -> None:
    rows = re.findall(r"^ +(fp32|fp16|int8|int4) +(\S+) +(\S+) +(\S+) +(\S+)$", verdict.__doc__ or "", re.M)
    stated = {name: tuple(map(float, figures)) for name, *figures in rows}
    assert stated == {
        name: (relative.good, relative.bad, KL_DIVERGENCE[name].good, KL_DIVERGENCE[name].bad)
        for name, relative in RELATIVE_ERROR.items()
    }


def test_a_coarser_format_may_cost_more() -> None:
    for table in (RELATIVE_ERROR, KL_DIVERGENCE):
        bounds = [(table[name].good, table[name].bad) for name in FORMATS]
        assert bounds == sorted(bounds) and all(good < bad for good, bad in bounds)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (stage(0.1), Verdict.GOOD),
        (stage(0.3), Verdict.LOOK),
        (stage(0.6), Verdict.BAD),
        (stage(0.1, 0.01), Verdict.GOOD),
        (stage(0.1, 0.2), Verdict.LOOK),
        (stage(0.1, 0.6), Verdict.BAD),
        (stage(float("nan")), Verdict.BAD),
        (stage(0.1, float("nan")), Verdict.BAD),
    ],
)
def test_the_worse_figure_counts(entry: Parity, expected: Verdict) -> None:
    assert judge(entry, "int4") is expected


def said(manifest: Manifest, path: Path) -> str:
    console = Console(file=StringIO(), width=80)
    show.print_summary(manifest, path, "", console)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize(
    ("options", "formats"),
    [
        ({}, ["fp32", "fp32"]),
        ({"kv_cache": "float16"}, ["fp32", "fp16"]),
        ({"kv_cache": "int8"}, ["fp32", "int8"]),
        ({"precision": "int4"}, ["int8", "int4"]),
    ],
    ids=str,
)
def test_a_right_build_is_good_in_the_format_that_it_is_judged_as(
    options: dict[str, str], formats: list[str], build_bundle: object
) -> None:
    path: Path = build_bundle(**options)  # type: ignore[operator]
    manifest = Bundle(path).manifest
    assert [format_of(manifest, "vision_encoder"), format_of(manifest, "decode")] == formats
    summary = said(manifest, path)
    assert "good" in summary and "look    " not in summary and "bad" not in summary
    assert summary.splitlines()[-1] == f"  echovlm-serve --bundle {path}"


def test_a_bad_stage_is_said_to_be_bad(golden_bundle: Path) -> None:
    told = Bundle(golden_bundle).manifest
    broken = [replace(entry, relative_error=0.9) if entry.stage == "projector" else entry for entry in told.parity]
    summary = said(replace(told, parity=tuple(broken)), golden_bundle)
    assert "bad" in next(line for line in summary.splitlines() if line.startswith(" projector "))
    assert "Do not serve it" in summary


def test_a_bundle_that_its_device_finishes_is_not_served_yet(golden_bundle: Path) -> None:
    manifest = replace(Bundle(golden_bundle).manifest, finish_with="build_on_device.sh", parity=())
    summary = said(manifest, golden_bundle)
    assert "echovlm-serve" not in summary and f"sh {golden_bundle}/build_on_device.sh" in summary
