"""The workloads: one table, which the pages of the docs repeat as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from echovlm_edge.runtime.profiling.workloads import NAMED, W1, W7, Q, Workload

DOCS = Path(__file__).parents[2] / "docs"


def test_each_workload_has_two_sizes() -> None:
    assert list(NAMED) == ["W1", "W7", "Q", "W1-196", "W7-196", "Q-196"]
    assert {workload.frame_tokens for name, workload in NAMED.items() if name.endswith("-196")} == {196}
    assert {workload.frame_tokens for workload in (W1, W7, Q)} == {391}
    for workload in (W1, W7, Q):
        small = NAMED[f"{workload.name}-196"]
        assert (small.frames, small.text_tokens, small.new_tokens, small.seen) == (
            *(workload.frames, workload.text_tokens, workload.new_tokens),
            workload.seen,
        )


def test_a_question_finds_all_before_it_cached() -> None:
    assert (W1.prefill_tokens, W7.prefill_tokens) == (451, 2797) and W7.cached_tokens == 0
    assert Q.encoded_frames == 0 and (Q.cached_tokens, Q.prefill_tokens) == (7 * 391 + 30, 30)
    assert Q.cached_tokens + Q.prefill_tokens == W7.prefill_tokens


@pytest.mark.parametrize("workload", NAMED.values(), ids=lambda workload: workload.name)
def test_the_docs_have_its_row(workload: Workload) -> None:
    text = (DOCS / "profiling.md").read_text(encoding="utf-8")
    row = (
        f"| `{workload.name}` | {workload.frames}{', already cached' if workload.seen else ''} | "
        f"{workload.width}x{workload.height} | {workload.frame_tokens} | {workload.text_tokens} | {workload.new_tokens} |"
    )
    assert row in text


def test_the_pages_of_figures_say_the_same() -> None:
    for page in ("performance.md", "performance-avx2.md"):
        text = (DOCS / page).read_text(encoding="utf-8")
        for name, words in re.findall(r"^\| ([WQ][\w-]*): ([^|]+) \|", text, re.MULTILINE):
            assert words == NAMED[name].words, page
