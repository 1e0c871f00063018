"""Every table that a command prints keeps its figures whole, in a terminal of 80 columns and in a narrower one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from benchmarks import decoder, dual_path_moe, full, stages
from benchmarks.limits import Machine as Limits
from benchmarks.soak import findings
from demo import evaluate, run, scoring
from demo.prompts import Form
from demo.simulate import simulate
from echovlm_edge.export import show
from echovlm_edge.export.bundle.plan import Machine, print_plan
from echovlm_edge.export.estimate import printed
from echovlm_edge.export.estimate.estimating import estimate
from echovlm_edge.runtime.backends.bundle_memory import BundleShape
from echovlm_edge.runtime.bundle.manifest import Bundle, FileSpec, Manifest
from echovlm_edge.runtime.contracts.tables import figures, names, new_table, print_table, readable_bytes, words
from echovlm_edge.runtime.contracts.tasks import Language
from echovlm_edge.runtime.resources.machine_memory import MachineMemory
from echovlm_edge.runtime.serving.supervision.serve_settings import ServeSettings
from tests.export.test_estimate import roofline

LONG = "an_uncommonly_long_name_of_a_part_or_of_a_machine"
LIMITS = Limits(12345.6, 1234567.0, 128, LONG)


@pytest.fixture
def manifest(golden_bundle: Path) -> Manifest:
    """With names and figures of every length that occurs."""
    told = Bundle(golden_bundle).manifest
    parity = tuple(
        replace(
            entry,
            relative_error=1.2345e-7,
            max_abs_error=12345.678,
            **({"kl_divergence": 1.2345e-12} if entry.kl_divergence is not None else {}),
        )
        for entry in told.parity
    )
    files = (*told.files, FileSpec(f"{LONG}.bin", 123_456_789_012, "0" * 64))
    return replace(told, parity=parity, files=files)


def summary(manifest: Manifest, console: Console) -> list[str]:
    show.print_summary(manifest, Path("bundles", LONG), "", console)
    return ["1.2e-05 %", "12346", "100.0 %", "1.2e-12", "123.46 GB", f"echovlm-serve --bundle bundles/{LONG}"]


def planned(manifest: Manifest, console: Console) -> list[str]:
    machine = Machine(MachineMemory(128 * 10**9, None, 98_765_432_109), 1_234_567_890_123)
    sizes = {f"{LONG}.data": 123_456_789_012, "projector.data": 12_345}
    print_plan(LONG, sizes, BundleShape.of(manifest), ServeSettings(bundle=Path("b")), machine, console)
    return ["123.46 GB", "12.3 kB", "1,234.57 GB", "98.77 GB"]


def estimated(manifest: Manifest, console: Console) -> list[str]:
    found = [estimate(roofline(name), "int4") for name in ("cpu", "jetson-orin-nano", "jetson-thor")]
    for each in found:
        printed.show(each, console)
    printed.compare(found, console)
    return [
        figure
        for each in found
        for outcome in (each.outcomes if each.fits else ())
        for figure in (
            f"{outcome.first_token_seconds:.2f} / {outcome.tokens_per_second:.1f}",
            f"{outcome.whole_seconds:,.1f}",
        )
    ]


def evaluated(manifest: Manifest, console: Console) -> list[str]:
    scores = scoring.Scores(1000, 1.0, 0.987, 1.0, 1.0, 12.34, 100.0, 99.9, 98.7)
    print_table(console, evaluate._reports_table(LONG, {"both": scores, "en": scores, "zh": scores}))
    return ["98.7%", "12.34", "100.0", "99.9", "98.7"]


def evaluated_forms(manifest: Manifest, console: Console) -> list[str]:
    cells = [
        scoring.Cell(form, Language.EN, frames, 125, right)
        for form in Form
        for frames, right in enumerate((1.0, 0.992, 0.984, 0.123), 1)
    ]
    print_table(console, evaluate._forms_table(LONG, cells))
    return ["diagnosis, --region", "100.0%", "99.2%", "98.4%", "12.3%"]


def demonstrated(manifest: Manifest, console: Console) -> list[str]:
    truth = simulate(run.SEED).truth
    print_table(console, run.side_by_side(truth, {language: {"text": ""} for language in Language}))
    return ["solid", str(truth.size_mm)]


def decoded(manifest: Manifest, console: Console) -> list[str]:
    decoder.print_speeds(LIMITS, [decoder.Speed("llama.cpp", "prefill", 12345.6, 0.123)], console)
    return ["12,345.6", "12.3%"]


def layered(manifest: Manifest, console: Console) -> list[str]:
    ours, *others = dual_path_moe.OURS, dual_path_moe.RUNTIME, dual_path_moe.TORCH_FP32, dual_path_moe.TORCH_BF16
    rows = [dual_path_moe.Row(ours, 256, 105.46, 123.4, 12345.0)]
    rows += [dual_path_moe.Row(impl, 256, 1000.39, 1.0, 1.0) for impl in others]
    dual_path_moe.print_rows(LIMITS, rows, [], console)
    return ["105.46", "1,000.39", "9.49x", "123.4", "12345"]


def whole_size(manifest: Manifest, console: Console) -> list[str]:
    cost = {"seconds": 1234.5, "share_of_int8_peak": 0.57}
    report = {
        "layers": 28,
        "precision": "int4",
        "a_long_name_of_a_figure_that_was_measured": 1234567.89,
        "machine": {"cpu": LONG, "threads": 2, "read_gbps": 12.3, "int8_gops": 1897.0},
        "ttft_seconds_by_workload": {"W1": 12345.67},
        "stages": {"W1": {"decode_images": cost, "vision": cost}},
    }
    full.print_report(report, console)
    return ["1,234,567.89", "12,345.67", "1,234.50", "57%"]


def soaked(manifest: Manifest, console: Console) -> list[str]:
    print_table(console, findings.table_of(findings.Soak(LONG, LONG, 10.0, rss_growth=0.1234)))
    return ["+12.3%", "0.0 ms", "0.00x"]


def staged(manifest: Manifest, console: Console) -> list[str]:
    slow, fast = stages.StageTimes(12.3456, 0.1, 1.2, 0.05), stages.StageTimes(0.1, 0.01, 0.2, 0.005)
    stages._print({"PyTorch eager float32": slow, "bundle int4": fast, "bundle int8": fast}, 493, 2, LONG, console)
    return ["12,345.6 ms", "100.0 ms  (123.46x)"]


TABLES: list[Callable[[Manifest, Console], list[str]]] = [
    summary,
    planned,
    estimated,
    evaluated,
    evaluated_forms,
    demonstrated,
    decoded,
    layered,
    whole_size,
    soaked,
    staged,
]


@pytest.mark.parametrize("width", [80, 60])
@pytest.mark.parametrize("print_it", TABLES)
def test_figures_are_whole(print_it: Callable[[Manifest, Console], list[str]], width: int, manifest: Manifest) -> None:
    console = Console(file=StringIO(), width=width)
    expected = print_it(manifest, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in said
    lines = said.splitlines()
    for figure in expected:
        assert any(figure in line for line in lines), f"{figure} is not whole in\n{said}"
    if width == 80:
        tables = [line for line in lines if line.startswith(" ") and "  " in line.strip()]
        assert max(map(len, tables), default=0) <= 80, f"wider than the terminal:\n{said}"


CELLS = st.from_regex(r"[0-9][0-9,.]{0,18}", fullmatch=True)


@settings(max_examples=50)
@given(rows=st.lists(st.tuples(st.text("abc_ ", max_size=50), CELLS, CELLS), min_size=1), width=st.integers(20, 100))
def test_any_figure_is_whole_at_any_width(rows: list[tuple[str, str, str]], width: int) -> None:
    table = new_table("", names("a name"), figures("a\nfigure"), words("a word"))
    for row in rows:
        table.add_row(*row)
    console = Console(file=StringIO(), width=width)
    print_table(console, table)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in said
    for _, *cells in rows:
        assert any(all(cell in line.split() for cell in cells) for line in said.splitlines()), said


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0.0 kB"),
        (551, "0.6 kB"),
        (99_949, "99.9 kB"),
        (1_815_168, "1.8 MB"),
        (99_900_000, "99.9 MB"),
        (7_340_000_000, "7.34 GB"),
    ],
)
def test_sizes_have_the_unit_that_fits(count: int, said: str) -> None:
    assert readable_bytes(count) == said
