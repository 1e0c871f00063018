"""Read the rows of a data set in both of the authors' formats; a row that cannot be asked is named with the reason."""

from __future__ import annotations

import enum
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.contracts.tasks import Language, Region
from echovlm_edge.runtime.evaluation.data.recognition import RowTask, language_of, region_of, task_of
from echovlm_edge.runtime.evaluation.scoring.closed_answers import read_closed

Kind = TypeVar("Kind", RowTask, Region, Language)
IMAGE_MARK = re.compile(r"<image>\n?")
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class NotSent(enum.Enum):
    """What a row has and the service takes nothing of: the row is asked without it, and counted."""

    SYSTEM = "system prompt"
    HISTORY = "earlier turns"
    PLACES = "pictures inside the text"


@dataclass(frozen=True)
class Row:
    """One question with its reference answer.

    Attributes:
        number: counted from 1, over all files.
        name: what sentences call it: its file, place and id.
        question: as it stands in the data, without the marks of pictures; of several turns the last.
        reference: the data's answer.
        pictures: in order; those of earlier turns too.
        key: identifies id, question, pictures and reference by their contents.
        region: a region's name, or `UNKNOWN`; language likewise.
        not_sent: what the service takes nothing of.
    """

    number: int
    name: str
    id: str = field(repr=False)
    question: str = field(repr=False)
    reference: str = field(repr=False)
    pictures: tuple[Path, ...]
    key: str
    task: RowTask
    region: str
    language: str
    not_sent: frozenset[NotSent]


@dataclass(frozen=True)
class BadRow:
    """A row without a figure: its number and name, and the reason as a clause: `has no answer`."""

    number: int
    name: str
    reason: str


@dataclass(frozen=True)
class Overrides:
    """What all rows are taken for, in place of what they say themselves."""

    task: RowTask | None = None
    region: Region | None = None
    language: Language | None = None


class Unusable(Exception):
    """A row cannot be asked; `str(error)` is the reason."""


def read_rows(
    files: Sequence[Path], images: Path, overrides: Overrides = Overrides()
) -> tuple[tuple[Row, ...], tuple[BadRow, ...]]:
    """Read every row of some files; pictures' paths are below the folder `images`.

    Raises:
        InvalidInput: a file is not a list of rows, or none of its rows can be asked.
    """
    rows, bad = dict[str, Row](), list[BadRow]()
    for number, (name, content) in enumerate(row_contents(files), 1):
        try:
            row = _row(number, name, content, images, overrides)
            if row.key in rows:
                raise Unusable(f"is the same as {rows[row.key].name}")
            rows[row.key] = row
        except Unusable as reason:
            bad.append(BadRow(number, name, str(reason)))
    if not rows:
        first = f": {bad[0].name} {bad[0].reason}" if bad else ""
        raise InvalidInput(
            f"No row of {', '.join(map(str, files))} can be asked{first}: give --data in one of the formats of docs/evaluation.md, "
            "and --images the folder that its paths begin in."
        )
    return tuple(rows.values()), tuple(bad)


def row_contents(files: Sequence[Path]) -> Iterator[tuple[str, Any]]:
    """Yield the name and the content of each row.

    Raises:
        InvalidInput: a file is not a list of rows.
    """
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise InvalidInput(f"The data {file} cannot be read ({error.strerror}): give a JSON file.") from None
        except (ValueError, RecursionError):
            raise InvalidInput(f"The data {file} is not JSON: give a list of rows.") from None
        if not isinstance(content, list):
            raise InvalidInput(f"The data {file} is not a list: give a JSON file that holds a list of rows.")
        for place, row in enumerate(content, 1):
            id = row.get("id") if isinstance(row, dict) else None
            named = f" ({str(id).encode(errors='replace').decode()})" if isinstance(id, str | int) else ""
            yield f"{file.name}, row {place}{named}", row


def _row(number: int, name: str, content: Any, images: Path, overrides: Overrides) -> Row:
    if not isinstance(content, dict):
        raise Unusable("is not an object")
    system, turns = turns_of(content)
    asked, reference = turns[-1]
    named = picture_names(content)
    marks = sum(len(IMAGE_MARK.findall(question)) for question, _ in turns)
    if marks and marks != len(named):
        raise Unusable(f"has {_counted(marks, '<image> mark')} and {_counted(len(named), 'picture')}")
    question = IMAGE_MARK.sub("", asked).strip()
    if not question:
        raise Unusable("has no words in its question")
    if not reference.strip():
        raise Unusable("has no words in its answer")
    id = str(content.get("id", ""))
    if any("\ud800" <= character <= "\udfff" for character in id + question + reference):
        raise Unusable("has a character that is none (half of a surrogate pair)")
    not_sent = {NotSent.SYSTEM: system, NotSent.HISTORY: len(turns) > 1, NotSent.PLACES: _inside(turns)}
    given_task = overrides.task or _choice(RowTask, content, "task")
    task = given_task or task_of(question, len(named))
    region = overrides.region or _choice(Region, content, "region")
    language = overrides.language or _choice(Language, content, "language")
    if task.closed and read_closed(task, reference, question) is None:
        if given_task:
            raise Unusable(f"is a {task.value}, and its answer is none")
        task = RowTask.QUESTION
    digests = [hashlib.sha256(_bytes(images / picture)).hexdigest() for picture in named]
    return Row(
        number=number,
        name=name,
        id=id,
        question=question,
        reference=reference,
        pictures=tuple(images / picture for picture in named),
        key=_key([id, question, reference, *digests]),
        task=task,
        region=region.value if region else region_of(question, reference),
        language=language.value if language else language_of(question, reference, task),
        not_sent=frozenset(what for what, there in not_sent.items() if there),
    )


def turns_of(content: Mapping[str, Any]) -> tuple[bool, list[tuple[str, str]]]:
    """Return whether a row has a system prompt, and each turn's question and answer.

    Raises:
        Unusable: it has no conversation.
    """
    messages = content.get("conversations") or content.get("messages")
    if not isinstance(messages, list):
        raise Unusable("has neither conversations nor messages")
    spoken, system = list[tuple[str, str]](), bool(content.get("system_prompt"))
    for message in messages:
        said = message if isinstance(message, dict) else {}
        role = _ROLES.get(str(said.get("from", said.get("role"))))
        text = said.get("value", said.get("content"))
        if role is None or not isinstance(text, str):
            raise Unusable("has a message without a known role or without text")
        if role == "system":
            system = system or bool(text.strip())
        else:
            spoken.append((role, text))
    if not spoken or [role for role, _ in spoken] != ["user", "assistant"] * (len(spoken) // 2):
        raise Unusable("does not alternate between questions and answers")
    texts = [text for _, text in spoken]
    return system, list(zip(texts[::2], texts[1::2], strict=True))


def _inside(turns: Sequence[tuple[str, str]]) -> bool:
    """Tell whether a picture stands after words; the service shows all pictures before all words."""
    before = ""
    for question, _ in turns:
        for piece in IMAGE_MARK.split(question)[:-1]:
            before += piece.strip()
            if before:
                return True
        before += IMAGE_MARK.sub("", question).strip()
    return False


def picture_names(content: Mapping[str, Any]) -> list[str]:
    """Return the paths of a row's pictures, as they stand in it.

    Raises:
        Unusable: they are none, or it has a video.
    """
    if content.get("videos") or content.get("video"):
        raise Unusable("is about a video")
    given = content.get("image") or content.get("images") or []
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise Unusable("has pictures that are not a list of paths")
    return names


def _choice(kind: type[Kind], content: Mapping[str, Any], name: str) -> Kind | None:
    value = content.get(name)
    if value is None:
        return None
    try:
        return kind(value)
    except ValueError:
        raise Unusable(f"has a {name} that is none of {', '.join(each.value for each in kind)}") from None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unusable(f"has a picture that cannot be read ({path.name}: {error.strerror})") from None
    except ValueError:  # a null character
        raise Unusable("has a picture whose path is none") from None


def _key(parts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
