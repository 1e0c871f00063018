"""Two runs compared: over the rows that both have, with an exit code; and evaluations that cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.evaluation.command import main
from echovlm_edge.runtime.evaluation.comparison import compare
from echovlm_edge.runtime.evaluation.schema import FILE, Evaluation, read, to_json
from tests.support.evaluations import evaluated

LABELS = ("a", "b")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return evaluated(tmp_path_factory.mktemp("run"), 42)


@pytest.fixture(scope="module")
def better(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return evaluated(tmp_path_factory.mktemp("better"), 42, lambda row: row.reference)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[Evaluation, str], str]:
    """Write an evaluation as a run's folder, and return the folder."""

    def write(evaluation: Evaluation, name: str) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / FILE).write_bytes(to_json(evaluation))
        return str(tmp_path / name)

    return write


def test_an_evaluation_is_read_as_it_was_written(run: Evaluation, saved: Callable[[Evaluation, str], str]) -> None:
    folder = saved(run, "run")
    assert read(Path(folder)) == run == read(Path(folder) / FILE)


def test_a_run_is_the_same_as_itself(run: Evaluation) -> None:
    found = compare(run, run, LABELS)
    assert {one.verdict for one in found.all_rows} == {"the same"} and not found.worse
    assert found.summary.endswith("no figure differs significantly (of " + f"{len(found.all_rows)}).")


def test_the_exit_code_says_whether_something_is_worse(
    run: Evaluation,
    better: Evaluation,
    saved: Callable[[Evaluation, str], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before, after = saved(run, "before"), saved(better, "after")
    assert main(["compare", before, after, "--html", str(tmp_path / "page.html")]) == 0
    out = capsys.readouterr().out
    assert "all: before and after" in out and "better" in out and (tmp_path / "page.html").is_file()
    assert main(["compare", after, before]) == 1
    assert "worse" in capsys.readouterr().out


def test_only_shared_rows_are_compared_and_others_are_counted(run: Evaluation, better: Evaluation) -> None:
    found = compare(replace(run, rows=run.rows[:30]), replace(better, rows=better.rows[10:]), LABELS)
    assert len(found.pairs) == 20 and all(one.key == other.key for one, other in found.pairs)
    assert {
        "10 rows of a left out: the other run does not have the same.",
        "12 rows of b left out: the other run does not have the same.",
    } <= set(found.notes)
    with pytest.raises(InvalidInput, match="share 1 row"):
        compare(replace(run, rows=run.rows[:1]), better, LABELS)


def test_a_metric_computed_in_another_way_is_not_compared(run: Evaluation) -> None:
    metrics = tuple(
        replace(metric, note="with synonyms") if metric.key.startswith("meteor") else metric for metric in run.metrics
    )
    found = compare(run, replace(run, metrics=metrics), LABELS)
    assert not [one for one in found.all_rows if one.metric.key.startswith("meteor")]
    assert any(note.startswith("Computed in one run alone, or in another way: METEOR") for note in found.notes)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        ("{", "is not JSON"),
        ("[]", "is not an evaluation"),
        ('{"schema": "echovlm-evaluate", "version": 9}', "of version 9, this program reads 1"),
        ('{"schema": "echovlm-evaluate", "version": 1}', "is a damaged evaluation (created"),
    ],
)
def test_what_is_no_evaluation_is_refused_by_name(
    content: str | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / FILE).write_text(content)
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert says in error and str(tmp_path / FILE) in error


def test_rows_that_are_as_the_reference_have_full_marks(run: Evaluation, better: Evaluation) -> None:
    values = {figure.metric: figure.value for figure in better.figures if figure.group == "all"}
    assert values["bleu1_characters"] == pytest.approx(100) and values["accuracy_choice"] == 100
    assert values["facts"] == 100 and values["facts_invented"] == 0
    worse = {figure.metric: figure.value for figure in run.figures if figure.group == "all"}
    assert worse["bleu1_characters"] < 100 and worse["facts"] < 100
