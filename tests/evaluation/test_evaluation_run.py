"""Whole runs: in process and against a server, killed and resumed, with changed settings and bad rows."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from echovlm_edge.runtime.bundle.calibration_pictures import picture_hash, write_pictures
from echovlm_edge.runtime.bundle.manifest import MANIFEST, Bundle
from echovlm_edge.runtime.evaluation.asking.journal import FILE as JOURNAL
from echovlm_edge.runtime.evaluation.command import main
from echovlm_edge.runtime.evaluation.schema import FILE, Evaluation, read
from tests.support.evaluation_data import messages, mixed_row, write_mixed, write_rows
from tests.support.running_server import Running, running

ROWS = 500 if os.environ.get("ECHOVLM_LONG") else 56
TOKENS = "12"
KILLED = 9  # answers before the kill


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of rows of every kind; its pictures are beside it."""
    return write_mixed(tmp_path_factory.mktemp("data"), ROWS)


@pytest.fixture(scope="module")
def server(golden_bundle: Path) -> Iterator[Running]:
    with running(golden_bundle) as started:
        yield started


def arguments(data: Path, output: Path, *more: object) -> list[str]:
    given = ("--data", data, "--images", data.parent, "--output", output, "--max-new-tokens", TOKENS, *more)
    return ["run", *map(str, given)]


@pytest.fixture(scope="module")
def one_at_a_time(golden_bundle: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """The evaluation of a run in process that asked one row at a time."""
    output = tmp_path_factory.mktemp("one")
    assert main(arguments(data, output, "--bundle", golden_bundle, "--concurrency", 1)) == 0
    return read(output)


def told(evaluation: Evaluation) -> dict[str, Any]:
    """All that does not depend on when and where it was asked."""
    content: dict[str, Any] = json.loads(
        json.dumps(evaluation, default=lambda value: getattr(value, "__dict__", str(value)))
    )
    return {name: value for name, value in content.items() if name not in ("created", "where")}


def test_every_row_has_its_answer_and_its_figures(one_at_a_time: Evaluation) -> None:
    assert len(one_at_a_time.rows) == ROWS and one_at_a_time.skipped == () and one_at_a_time.where == "in process"
    assert all(row.answer or row.finish == "stop" for row in one_at_a_time.rows)
    computed = {figure.metric for figure in one_at_a_time.figures if figure.group == "all"}
    assert {
        "bleu1_characters",
        "rougel_jieba",
        "meteor_jieba",
        "sacrebleu_zh",
        "sacrebleu_13a",
        "english_rougeL",
        "accuracy_judge",
    } <= computed
    groups = {figure.group for figure in one_at_a_time.figures}
    assert {"task: report", "task: choice", "region: breast", "language: en", "language: zh"} <= groups
    assert all(
        figure.low is not None and figure.low <= figure.value <= (figure.high or 0)
        for figure in one_at_a_time.figures
        if figure.metric == "bleu1_characters" and figure.rows > 20
    )


def test_a_server_with_eight_at_a_time_gives_the_numbers_of_one(
    one_at_a_time: Evaluation, server: Running, data: Path, tmp_path: Path
) -> None:
    assert main(arguments(data, tmp_path, "--server", server.server.address)) == 0
    assert told(read(tmp_path)) == told(one_at_a_time)
    assert read(tmp_path).where == server.server.address


def test_eight_at_a_time_in_process_give_the_numbers_of_one(
    one_at_a_time: Evaluation, golden_bundle: Path, data: Path, tmp_path: Path
) -> None:
    assert main(arguments(data, tmp_path, "--bundle", golden_bundle)) == 0
    assert told(read(tmp_path)) == told(one_at_a_time)


KILL = f"""
append = Journal._append
def killed(self, content):
    if len(self.answers) == {KILLED}:
        self._file.write(json.dumps(content).encode()[:30])
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    append(self, content)
Journal._append = killed
"""


def test_a_run_that_was_killed_resumes_and_gives_the_same_table(
    one_at_a_time: Evaluation,
    golden_bundle: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed within a line; `test_journal` cuts lines everywhere else."""
    given = arguments(data, tmp_path, "--bundle", golden_bundle)
    program = f"""
import json, os, signal, sys
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.evaluation.asking.journal import Journal
from echovlm_edge.runtime.evaluation.command import main
{KILL}
main(sys.argv[1:])
"""
    done = subprocess.run([sys.executable, "-c", program, *given], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / FILE).exists()
    from echovlm_edge.runtime.evaluation.asking.targets import InProcess

    asked, ask = list[str](), InProcess.ask
    monkeypatch.setattr(InProcess, "ask", lambda self, row, sampling: asked.append(row.key) or ask(self, row, sampling))
    assert main(given) == 0
    assert len(asked) == ROWS - KILLED
    assert told(read(tmp_path)) == told(one_at_a_time)


def test_what_is_answered_is_not_asked_again(server: Running, data: Path, tmp_path: Path) -> None:
    given = arguments(data, tmp_path, "--server", server.server.address)
    assert main(given) == 0
    before = (tmp_path / JOURNAL).read_bytes()
    assert main([*given, "--region", "heart"]) == 0  # the same questions in other groups
    assert (tmp_path / JOURNAL).read_bytes() == before
    assert {row.region for row in read(tmp_path).rows} == {"heart"}


def test_other_settings_or_data_are_refused_or_begin_again(
    server: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, output = write_rows(tmp_path, [mixed_row(0), mixed_row(1)]), tmp_path / "run"
    given = arguments(file, output, "--server", server.server.address)
    assert main(given) == 0
    capsys.readouterr()
    assert main([*given, "--max-new-tokens", "9"]) == 2
    assert "answers of other settings (max_new_tokens 12, now 9)" in capsys.readouterr().err
    write_rows(tmp_path, [mixed_row(0), mixed_row(2)])
    assert main(given) == 2
    assert "1 answers about questions, answers or pictures that the data does not have now" in capsys.readouterr().err
    assert main([*given, "--max-new-tokens", "9", "--restart"]) == 0
    evaluation = read(output)
    assert evaluation.settings.max_new_tokens == 9 and [row.id for row in evaluation.rows] == ["row-0", "row-2"]


def test_bad_rows_are_named_skipped_counted_and_said_by_the_exit_code(
    server: Running, golden_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        mixed_row(0),
        messages("no picture", ["pictures/none.png"], "?", "x"),
        messages("unreadable", ["pictures/torn.png"], "这是什么？", "结节"),
        messages("reserved", [], "<|im_start|>system", "结节"),
        messages("too long", [], "结" * Bundle(golden_bundle).manifest.limits.max_sequence, "结节"),
        {"id": "malformed"},
        mixed_row(1),
    ]
    file = write_rows(tmp_path, [rows[0], rows[2], rows[6]])  # for their pictures
    file.write_text(json.dumps(rows))
    (tmp_path / "pictures/torn.png").write_bytes((tmp_path / "pictures/torn.png").read_bytes()[:200])
    skipped = {}
    for name, place in (("server", ("--server", server.server.address)), ("bundle", ("--bundle", golden_bundle))):
        assert main(arguments(file, tmp_path / name, *place)) == 1
        out = capsys.readouterr().out
        assert "Skipped: 5 rows." in out and "row 2 (no picture)" in out
        evaluation = read(tmp_path / name)
        assert [row.id for row in evaluation.rows] == ["row-0", "row-1"]
        skipped[name] = {row.number: row.reason for row in evaluation.skipped}
        assert list(skipped[name]) == [2, 3, 4, 5, 6]
    for told in skipped.values():
        assert told[2] == "has a picture that cannot be read (none.png: No such file or directory)"
        assert told[3].startswith("was refused: ") and "torn.png" in told[3]
        assert told[4].startswith("was refused: The prompt holds the reserved token")
        assert told[5].startswith("was refused: The prompt takes ")
        assert told[6] == "has neither conversations nor messages"


@pytest.mark.parametrize("place", ["bundle", "server"])
def test_pictures_that_the_bundle_was_calibrated_with_are_refused(
    golden_bundle: Path, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Path(shutil.copytree(golden_bundle, tmp_path / "calibrated"))
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["calibration"] = {"pictures": 1, "tokens": 9, "answers": True, "bits": 4.125, "weights": []}
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    file = write_rows(tmp_path, [mixed_row(0), mixed_row(1)])
    write_pictures(bundle, [picture_hash((tmp_path / "pictures/1b.png").read_bytes())])
    with running(bundle) if place == "server" else nullcontext() as started:
        asked = ("--server", started.server.address) if started else ("--bundle", bundle)
        assert main(arguments(file, tmp_path / "run", *asked)) == 2
    assert "was calibrated with 1 of these pictures" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ((), "Give --bundle to ask a model in this process, or --server"),
        (("--server", "127.0.0.1:9", "--bundle", "b"), "Give --bundle to ask"),
        (("--server", "127.0.0.1:9", "--concurrency", "0"), "--concurrency 0 asks nothing"),
        (("--bundle", "none"), "none"),
        (("--server", "127.0.0.1:9", "--bertscore", "none"), "--bertscore none holds no model"),
        (("--server", "127.0.0.1:9", "--temperature", "-1"), "temperature must be between"),
    ],
)
def test_wrong_options_are_one_sentence(
    more: tuple[str, ...], says: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(data, tmp_path, *more)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and says in line


def test_a_server_that_is_not_there_ends_the_run(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(data, tmp_path, "--server", "127.0.0.1:9")) == 4
    assert capsys.readouterr().err.startswith("error: ")


def test_the_preset_is_the_authors_and_options_replace_single_settings(server: Running, tmp_path: Path) -> None:
    file = write_rows(tmp_path, [mixed_row(0), mixed_row(1)])
    given = [
        "run",
        "--server",
        server.server.address,
        "--data",
        str(file),
        "--images",
        str(tmp_path),
        "--preset",
        "as-evaluated",
    ]
    assert main([*given, "--output", str(tmp_path / "short"), "--max-new-tokens", "6"]) == 0
    settings = read(tmp_path / "short").settings
    assert (settings.repetition_penalty, settings.max_new_tokens, settings.temperature) == (1.1, 6, 0.0)
