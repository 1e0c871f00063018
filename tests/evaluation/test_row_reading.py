"""Rows of both of the authors' formats, and what is said about those that cannot be asked."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.contracts.tasks import Language, Region
from echovlm_edge.runtime.evaluation.data.recognition import RowTask
from echovlm_edge.runtime.evaluation.data.rows import NotSent, Overrides, read_rows
from tests.support.evaluation_data import conversation, messages, write_mixed, write_picture, write_rows

SAMPLES = Path(__file__).with_name("authors_like.json")


def test_samples_in_the_authors_formats(tmp_path: Path) -> None:
    file = write_rows(tmp_path, json.loads(SAMPLES.read_text(encoding="utf-8")))
    rows, bad = read_rows([file], tmp_path)
    assert bad == () and [row.number for row in rows] == list(range(1, 16))
    assert [row.task.value for row in rows] == [
        *("caption", "findings", "report", "impression", "judge", "choice", "choice", "question"),
        *("caption", "caption", "report", "findings", "question", "impression", "caption"),
    ]
    assert [row.region for row in rows] == [
        *("breast", "thyroid", "liver", "kidney", "vessel", "gynecology", "heart", "unknown"),
        *("kidney", "breast", "thyroid", "unknown", "liver", "thyroid", "vessel"),
    ]
    assert {row.language for row in rows if row.number not in (10, 11)} == {"zh"}
    assert [rows[9].language, rows[10].language] == ["en", "en"]
    assert rows[0].question == "请看图写一段说明。" and rows[0].reference.startswith("左侧乳腺")
    assert rows[2].question == "请写一份超声报告。" and len(rows[2].pictures) == 3
    assert rows[7].question == "它在哪一侧？" and rows[7].reference == "左侧。"
    assert rows[11].question == "这幅图的左侧和这幅有什么不同？"
    assert rows[12].pictures == () and rows[13].pictures == (tmp_path / "set two/14.png",) and rows[13].id == "14"
    assert [row.name for row in rows][:2] == ["data.json, row 1 (cyst (1).png)", "data.json, row 2 (case-2)"]
    assert {row.number: row.not_sent for row in rows if row.not_sent} == {
        1: {NotSent.SYSTEM},
        4: {NotSent.SYSTEM},
        8: {NotSent.HISTORY},
        10: {NotSent.SYSTEM},
        12: {NotSent.PLACES},
    }


PICTURE = "p.png"
BAD: dict[str, Any] = {
    "is not an object": ["text"],
    "has neither conversations nor messages": {"id": "1"},
    "has a message without a known role or without text": {"messages": [{"role": "tool", "content": "?"}]},
    "does not alternate between questions and answers": {"messages": [{"role": "user", "content": "?"}]},
    "has 2 <image> marks and 1 picture": conversation("1", [PICTURE], "<image><image>?", "x"),
    "has no words in its question": conversation("1", [PICTURE], "<image>\n", "x"),
    "has no words in its answer": messages("1", [PICTURE], "<image>?", " "),
    "has pictures that are not a list of paths": messages("1", [], "?", "x") | {"images": [3]},
    "has a picture that cannot be read (none.png: No such file or directory)": messages("1", ["none.png"], "?", "x"),
    "has a picture that cannot be read (folder: Is a directory)": messages("1", ["folder"], "?", "x"),
    "has a picture whose path is none": messages("1", ["a\0b"], "?", "x"),
    "has a character that is none (half of a surrogate pair)": messages("1\ud800", [], "?", "x"),
    "is about a video": messages("1", [], "?", "x", videos=["v.mp4"]),
    "has a task that is none of report, findings, impression, caption, judge, choice, question": messages("1", [], "?", "x", task="poem"),
    "is a judge, and its answer is none": messages("1", [], "?", "a cyst", task="judge"),
    "is the same as data.json, row 1 (good)": conversation("good", [PICTURE], "<image>?", "x"),
}  # fmt: skip


@pytest.mark.parametrize("reason", BAD)
def test_a_row_that_cannot_be_asked_is_named_with_the_reason(reason: str, tmp_path: Path) -> None:
    write_picture(tmp_path / PICTURE, 1)
    (tmp_path / "folder").mkdir()
    file = tmp_path / "data.json"
    file.write_text(json.dumps([conversation("good", [PICTURE], "<image>?", "x"), BAD[reason]]))  # as ASCII
    rows, (bad,) = read_rows([file], tmp_path)
    assert [row.id for row in rows] == ["good"]
    assert (bad.number, bad.reason) == (2, reason) and bad.name.startswith("data.json, row 2")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"id": 1}', "is not a list"),
        ("[]", "No row of"),
        ("[1, 2]", "row 1 is not an object"),
    ],
)
def test_a_file_that_holds_no_rows_is_refused(content: str | None, says: str, tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InvalidInput) as refused:
        read_rows([file], tmp_path)
    assert says in str(refused.value) and str(file) in str(refused.value)


def test_overrides_hold_for_all_rows(tmp_path: Path) -> None:
    file = write_mixed(tmp_path, 14)
    rows, bad = read_rows([file], tmp_path, Overrides(RowTask.QUESTION, Region.HEART, Language.EN))
    assert len(rows) == 14 and not bad
    assert {(row.task, row.region, row.language) for row in rows} == {(RowTask.QUESTION, "heart", "en")}


def test_a_question_that_looks_closed_and_is_not_answered_so_is_free(tmp_path: Path) -> None:
    file = write_rows(tmp_path, [messages("1", [], "描述是否正确？", "乳腺内未见结节。")])
    ((row,), _) = read_rows([file], tmp_path)
    assert row.task is RowTask.QUESTION


def test_several_files_are_counted_through(tmp_path: Path) -> None:
    first = write_rows(tmp_path, [messages("1", [], "?", "x")], "one.json")
    second = write_rows(tmp_path, [messages("1", [], "?", "y")], "two.json")
    rows, _ = read_rows([first, second], tmp_path)
    assert [(row.number, row.name) for row in rows] == [(1, "one.json, row 1 (1)"), (2, "two.json, row 1 (1)")]


def test_the_key_changes_with_question_picture_and_reference_alone(tmp_path: Path) -> None:
    def key(question: str = "?", reference: str = "x", seed: int = 1, task: str = "question") -> str:
        file = write_rows(tmp_path, [messages("1", [PICTURE], question, reference, task=task)])
        write_picture(tmp_path / PICTURE, seed)
        ((row,), _) = read_rows([file], tmp_path)
        return row.key

    assert len({key(), key("!"), key(reference="y"), key(seed=2)}) == 4
    assert key() == key(task="report")


def test_the_generated_rows_are_of_every_kind(tmp_path: Path) -> None:
    rows, bad = read_rows([write_mixed(tmp_path, 70)], tmp_path)
    assert not bad and set(Counter(row.task for row in rows).values()) == {10} and len({row.task for row in rows}) == 7
    assert len({row.region for row in rows}) == 8 and {row.language for row in rows} == {"zh", "en"}
