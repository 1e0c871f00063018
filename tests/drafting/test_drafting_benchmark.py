"""The benchmark of drafting: its decoder writes the given texts, with and without drafts, and figures count full steps only."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.drafting import measuring
from benchmarks.drafting.forced_text import Call, Steps, full_steps
from benchmarks.drafting.measuring import Writers, long_texts, measure
from benchmarks.drafting.simulation import simulate
from benchmarks.drafting.texts import Texts, demo_reports, drafting_texts
from echovlm_edge.plugins.dual_path_moe.library import library_path
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.drafting.phrase_table import PhraseTable
from tests.conftest import BuildBundle

PHRASES = 12


def texts_of_phrases(count: int, stop: int, seed: int) -> list[list[int]]:
    """Texts of five phrases each, of eight tokens that are in no other phrase."""
    chosen = random.Random(seed)
    starts = [[chosen.randrange(PHRASES) for _ in range(5)] for _ in range(count)]
    return [[*(8 * start + place for start in text for place in range(8)), stop] for text in starts]


@pytest.mark.skipif(library_path() is None, reason="only our own operators verify drafts on a CPU")
def test_the_texts_are_written_with_and_without_drafts(
    build_bundle: BuildBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle(build_bundle(precision="int4"))
    stop = bundle.manifest.model.stop_token_ids[0]
    monkeypatch.setattr(measuring, "FIRST_MARKER", 0)
    table = PhraseTable.build(texts_of_phrases(60, stop, 0), 1)
    writers = Writers(bundle, texts_of_phrases(12, stop, 1), table, 1)
    try:
        rows = measure(writers, 1, (1,))  # of several, a busy machine may finish one before the next begins
    finally:
        writers.close()
    assert [(row.sequences, row.drafting) for row in rows] == [(1, False), (1, True)]
    for row in rows:
        if not row.drafting:
            assert row.tokens_per_step == row.rows_per_step == row.sequences


def test_only_steps_that_all_sequences_go_through_count() -> None:
    calls = [
        Call(0.0, {1: (10, 1)}, True),  # another one's prompt
        Call(1.0, {1: (11, 4), 2: (20, 1)}, False),  # 3 and 1 tokens
        Call(3.0, {1: (14, 1), 2: (21, 2)}, False),  # 1 and 2 tokens
        Call(4.0, {1: (15, 1), 2: (23, 1)}, False),  # the second one ends
        Call(5.0, {1: (16, 1)}, False),
    ]
    assert full_steps(calls, 2) == Steps(steps=2, seconds=3.0, tokens=7, rows=8)


def test_a_simulated_text_is_its_tokens() -> None:
    text = list(range(20))
    table = PhraseTable.build([text] * 40, 1)
    known = simulate(table, [text], 0.0)
    assert known.tokens_per_step == 19 / 2  # 15 drafted tokens and one more, then the rest
    unknown = simulate(PhraseTable.build([], 1), [text], 0.1)
    assert (unknown.tokens_per_step, unknown.rows_per_step, unknown.ratio) == (1, 1, 1)


def test_held_out_reports_are_of_other_studies_and_other_texts(tmp_path: Path) -> None:
    reports = [f"Report {number % 700} shows nothing." for number in range(800)]
    (tmp_path / "reports.txt").write_text("\n".join(reports))
    found = drafting_texts([tmp_path / "reports.txt"])
    assert len(found.store) == 500 and not found.note
    assert found.held and not {tuple(text) for text in found.held} & {tuple(text) for text in found.store}
    again = drafting_texts([tmp_path / "reports.txt"])
    assert again == found


def test_long_texts_have_one_length_and_end_once() -> None:
    held = [[number, number + 1, 9999] for number in range(500)]
    joined = long_texts(Texts("", [], [], held))
    assert joined and all(len(text) == measuring.LENGTH and text.index(9999) == len(text) - 1 for text in joined)


def test_the_demo_stands_in_without_captions() -> None:
    texts = [report.text for report in demo_reports()]
    assert len(set(texts)) == len(texts) > 1000
