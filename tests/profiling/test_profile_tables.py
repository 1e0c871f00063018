"""The profiler's tables in a terminal of 80 columns: every figure in full, whatever its size, and no line beyond the edge."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from echovlm_edge.runtime.contracts.stages import ORDER, words
from echovlm_edge.runtime.profiling.comparison.compare import Margins, compare
from echovlm_edge.runtime.profiling.distributions import Distribution
from echovlm_edge.runtime.profiling.schema import Energy, Operator, Profile, RooflinePoint, StageFigures
from echovlm_edge.runtime.profiling.table import comparison, how_to_read, tables
from tests.support.profiles import profile, with_everything

WIDTH = 80


def shown(parts: object, width: int = WIDTH) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    for part in parts:  # type: ignore[attr-defined]
        console.print(part)
    return console.file.getvalue()  # type: ignore[attr-defined]


def large(seconds: float) -> Profile:
    """A profile with every stage, names as long as they come, and times of that size."""
    told = with_everything(profile(0))
    each = Distribution(10, *[seconds * factor for factor in (1.0, 1.0, 1.1, 1.2, 1.3, 1.9)])
    points = tuple(RooflinePoint(name, 1e13, 3e15, seconds) for name in ("vision", "projector", "prefill", "decode"))
    figures = replace(
        told.workloads[0],
        name="16x1024x768-p1024-n2048-c16",
        stages={name: StageFigures(each, 1.0) for name in ORDER},
        end_to_end=each,
        ttft=each,
        tpot=each,
        gaps=each,
        roofline=points,
        energy=Energy("RAPL", {"package-0": 123456.78}, {"package-0": 1234.5}),
    )
    operators = tuple(
        Operator("vision_encoder", "image", f"block {31}, attention", "node", kind, 123456, seconds * 123456)
        for kind in ("SkipSimplifiedLayerNormalization", "MultiHeadAttention")
    )
    return replace(told, workloads=(figures,), operators=operators)


@pytest.mark.parametrize("seconds", [1e-6, 0.0123, 1.2345, 123.456, 12345.678])
def test_nothing_is_cut_at_80_columns(seconds: float) -> None:
    text = shown(tables(large(seconds)))
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= WIDTH
    figures = re.compile(r"\d[\d.,]*%?")
    wide = shown(tables(large(seconds)), 250)
    assert sorted("".join(figures.findall(text))) == sorted("".join(figures.findall(wide)))  # no digit is lost
    stages = [line for line in text.splitlines() if line.strip().startswith(tuple(words(name) for name in ORDER))]
    for line in stages[: len(ORDER)]:
        assert len(figures.findall(line)) == 6, line  # median, p90, p95, p99, max, share stand on one line


@pytest.mark.parametrize("seconds", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("noise", [0.01, 0.3, 1.5])
def test_a_comparison_fits_80_columns(seconds: float, noise: float) -> None:
    def scaled(seed: int) -> Profile:
        told = profile(seed, 5, noise)
        runs = tuple(
            replace(
                run,
                seconds=run.seconds * seconds,
                first_token=(run.first_token or 0) * seconds,
                stages={name: taken * seconds for name, taken in run.stages.items()},
                gaps=tuple(gap * seconds for gap in run.gaps),
            )
            for run in told.workloads[0].runs
        )
        return replace(told, workloads=(replace(told.workloads[0], runs=runs),))

    margins = Margins()
    found = compare(scaled(1), scaled(2), margins)["W1"]
    text = shown(comparison("W1", found, margins))
    assert "…" not in text and max(map(len, text.splitlines())) <= WIDTH
    for figure in found:
        (line,) = [line for line in text.splitlines() if line.strip().startswith(words(figure.name) + "  ")]
        assert line.rstrip().endswith(figure.verdict)
    assert text.strip().startswith("W1: ")


def test_the_comparison_tells_the_smallest_change_that_would_have_been_seen() -> None:
    margins = Margins()
    found = compare(profile(1), profile(2), margins)["W1"]
    text = shown(comparison("W1", found, margins))
    assert "sees from" in text and "sees from: the smallest slowdown" in how_to_read(margins).lower()
    (line,) = [line for line in text.splitlines() if line.strip().startswith("vision")]
    (vision,) = [figure for figure in found if figure.name == "vision"]
    assert f"{vision.smallest:+.1%}" in line


def test_operators_are_named_by_the_stage_they_belong_to() -> None:
    text = shown(tables(with_everything(profile(0))))
    rows = text.split("operators")[1].splitlines()
    assert any(row.strip().startswith("prefill") for row in rows) and any(
        row.strip().startswith("decode") for row in rows
    )
