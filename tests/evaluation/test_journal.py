"""The journal of answers: what a kill leaves of it, and whose answers it refuses to mix."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.evaluation.asking.journal import FILE, Answer, Journal
from echovlm_edge.runtime.evaluation.schema import ModelFacts, Settings

SETTINGS = Settings(ModelFacts("demo", "1234", "cpu", "int4"), 64, 0.0, 0, 1.0, 1.0, 0)
ANSWER = Answer("左侧乳腺\n\u2028结节。", "stop", 7)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose journal has two answers."""
    with Journal(tmp_path, SETTINGS) as journal:
        journal.add("one", ANSWER)
        journal.add("two", replace(ANSWER, text=""))
    return tmp_path


def test_answers_are_there_when_it_is_opened_again(folder: Path) -> None:
    with Journal(folder, SETTINGS) as journal:
        assert journal.answers == {"one": ANSWER, "two": replace(ANSWER, text="")}


@pytest.mark.parametrize("left", [1, 5, 30])
def test_a_line_that_a_kill_cut_is_dropped(folder: Path, left: int) -> None:
    content = (folder / FILE).read_bytes()
    last = content.splitlines(keepends=True)[-1]
    (folder / FILE).write_bytes(content[: len(content) - len(last) + left])
    with Journal(folder, SETTINGS) as journal:
        assert list(journal.answers) == ["one"]
        journal.add("three", ANSWER)
    with Journal(folder, SETTINGS) as journal:
        assert list(journal.answers) == ["one", "three"]


def test_a_journal_without_a_whole_line_begins_again(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b'{"schema": "echo')
    with Journal(tmp_path, SETTINGS) as journal:
        assert journal.answers == {}


def test_other_settings_are_refused_by_name(folder: Path) -> None:
    changed = replace(SETTINGS, max_new_tokens=128, model=replace(SETTINGS.model, precision="int8"))
    with pytest.raises(
        InvalidInput, match=r"model's precision int4, now int8, max_new_tokens 64, now 128\): give .* --restart"
    ):
        Journal(folder, changed)
    with Journal(folder, changed, restart=True) as journal:
        assert journal.answers == {}
    with Journal(folder, changed) as journal:
        assert journal.answers == {}


@pytest.mark.parametrize("damage", [b"no json\n", b'{"key": "x"}\n', b"[]\n", b'"text"\n'])
def test_a_damaged_line_is_refused(folder: Path, damage: bytes) -> None:
    with (folder / FILE).open("ab") as file:
        file.write(damage)
    with pytest.raises(InvalidInput, match="is damaged, or of another version"):
        Journal(folder, SETTINGS)


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b'{"schema": "other", "version": 1}\n')
    with pytest.raises(InvalidInput, match="of another version"):
        Journal(tmp_path, SETTINGS)


def test_one_process_at_a_time_writes(folder: Path) -> None:
    with Journal(folder, SETTINGS), pytest.raises(NotPossibleHere, match="Another echovlm-evaluate writes to"):
        Journal(folder, SETTINGS)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotPossibleHere, match="cannot be written"):
        Journal(tmp_path / "none", SETTINGS)
