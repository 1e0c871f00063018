"""Read the texts of reports for `--phrases`: text files, folders of text files, and data files in the authors' formats."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.evaluation.data.rows import Unusable, picture_names, row_contents, turns_of

FORMATS = "give a text file with a report on each line, a folder of .txt files with a report each, or a JSON file in the authors' format"


@dataclass(frozen=True)
class ReportText:
    """One report, or an answer about a study.

    Attributes:
        text: without white space around it.
        study: texts of one number are about one patient, as far as the data tells.
    """

    text: str = field(repr=False)
    study: int


def read_reports(sources: Sequence[Path], skipped: Callable[[str], None]) -> list[ReportText]:
    """Read all reports, in the order of their studies.

    Args:
        sources: a text file has a report on each line; in a folder each .txt file is one; a .json file has rows of the authors' formats,
            whose answers are taken, and rows that share a picture, in any of the files, are of one study.
        skipped: called with a sentence about each row that cannot be used.

    Raises:
        InvalidInput: a source cannot be read, or has no report.
    """
    found = list[_Found]()
    for source in sources:
        here = [(text.strip(), names) for text, names in _texts(source, skipped) if text.strip()]
        if not here:
            raise InvalidInput(f"There is no report in {source}: {FORMATS}.")
        found += here
    studies = _studies([names for _, names in found])
    texts = [ReportText(text, study) for (text, _), study in zip(found, studies, strict=True)]
    return sorted(texts, key=lambda text: text.study)


_Found = tuple[str, Sequence[str]]  # a text, and names of its study: its pictures, or its own


def _studies(named: Sequence[Sequence[str]]) -> list[int]:
    """Number the studies from 0: texts that share a name are of one."""
    other = dict[str, str]()  # of each name another one of its study, of one of them itself

    def chosen(name: str) -> str:
        while other.setdefault(name, name) != name:
            name = other[name]
        return name

    for names in named:
        for name in names:
            other[chosen(name)] = chosen(names[0])
    numbers = dict[str, int]()
    return [numbers.setdefault(chosen(names[0]), len(numbers)) for names in named]


def _texts(source: Path, skipped: Callable[[str], None]) -> Iterator[_Found]:
    if source.is_dir():
        for file in sorted(source.rglob("*.txt")):
            yield _read(file), [str(file)]
    elif source.suffix.lower() == ".json":
        yield from _answers(source, skipped)
    else:
        for number, line in enumerate(_read(source).splitlines()):
            yield line, [f"{source}, line {number}"]


def _answers(source: Path, skipped: Callable[[str], None]) -> Iterator[_Found]:
    for name, row in row_contents([source]):
        try:
            if not isinstance(row, dict):
                raise Unusable("is not an object")
            pictures, (_, turns) = picture_names(row), turns_of(row)
        except Unusable as reason:
            skipped(f"{name} is left out of the phrases: it {reason}.")
            continue
        for _, answer in turns:
            yield (
                answer.encode(errors="replace").decode(),
                pictures or [name],
            )  # half of a surrogate pair is no character


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidInput(f"The reports {file} cannot be read ({error.strerror}): {FORMATS}.") from None
    except ValueError:
        raise InvalidInput(f"The reports {file} are not UTF-8 text: convert them, or {FORMATS}.") from None
