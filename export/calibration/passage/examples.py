"""List what a model is calibrated with: questions, answers and their pictures from data files, or a folder of pictures alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from echovlm_edge.runtime.contracts.tasks import Language, Task, prompt_for
from echovlm_edge.runtime.evaluation.data.rows import read_rows


@dataclass(frozen=True)
class Example:
    """One question about some pictures; `answer` is empty where only the pictures are known."""

    pictures: tuple[Path, ...]
    question: str
    answer: str


def read_examples(source: Path, images: Path | None, skipped: Callable[[str], None]) -> list[Example]:
    """Read a data file in either of the authors' formats, or list a folder of pictures.

    Each picture of a folder is asked for a report, in English and Chinese by turns, without an answer: to write one, all weights would have
    to be read from the disk for every token.

    Args:
        source: the data file or the folder.
        images: the folder that a data file's pictures are relative to; None for the folder of the data file.
        skipped: called with a sentence about each row that cannot be used.

    Raises:
        InvalidInput: the file is not a list of rows, or none of its rows can be used.
    """
    if source.is_dir():
        files = sorted(path for path in source.rglob("*") if path.is_file() and not path.name.startswith("."))
        languages = list(Language)
        return [
            Example((file,), prompt_for(Task.REPORT, "", 1, languages[number % 2], None), "")
            for number, file in enumerate(files)
        ]
    rows, bad = read_rows([source], images or source.parent)
    for row in bad:
        skipped(f"{row.name} is left out of the calibration: it {row.reason}.")
    return [Example(row.pictures, row.question, row.reference) for row in rows if row.pictures]
