"""Choose the question about a study: region, language, task and prompt by a table of what carts write into their images."""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.tasks import Language, Region, Task
from echovlm_edge.runtime.formats.dicom_attributes import items

DESCRIPTIONS = (
    *("StudyDescription", "SeriesDescription", "ProtocolName", "PerformedProcedureStepDescription"),
    "RequestedProcedureDescription",
)
MATCHES = ("ae_title", "body_part", "anatomic_region", "procedure", "description")
GIVES = ("region", "language", "task", "prompt")
TASKS = (Task.REPORT, Task.FINDINGS, Task.DIAGNOSIS)  # those whose text is a document


@dataclass(frozen=True)
class Facts:
    """What a study's images say: all their values, in capitals.

    Attributes:
        ae_title: of the senders.
        body_part: BodyPartExamined.
        anatomic_region: code values and meanings of AnatomicRegionSequence.
        procedure: code values and meanings of ProcedureCodeSequence.
        description: of the study, its series, protocols and procedure steps.
    """

    ae_title: frozenset[str] = field(default=frozenset(), repr=False)
    body_part: frozenset[str] = field(default=frozenset(), repr=False)
    anatomic_region: frozenset[str] = field(default=frozenset(), repr=False)
    procedure: frozenset[str] = field(default=frozenset(), repr=False)
    description: frozenset[str] = field(default=frozenset(), repr=False)


@dataclass(frozen=True)
class Row:
    """A row of the table: patterns (`*` stands for anything) that must all match, and what it gives.

    Attributes:
        name: is written into the document.
        matches: patterns by attribute; one of an attribute's has to match one of its values.
        region, language, prompt, task: what it gives; None for nothing.
    """

    name: str
    matches: dict[str, tuple[str, ...]] = field(default_factory=dict)
    region: Region | None = None
    language: Language | None = None
    prompt: str | None = field(default=None, repr=False)
    task: Task | None = None


@dataclass(frozen=True)
class Question:
    """What is asked about a study, and the names of the rows that decided it."""

    region: Region | None
    language: Language
    prompt: str = field(default="", repr=False)
    rows: tuple[str, ...] = ()
    task: Task = Task.REPORT


def _built_in(region: Region, body_parts: str, codes: str, descriptions: str) -> list[Row]:
    """Rows for a region: by body part (PS3.16 annex L), by SNOMED CT code, by words of a description."""
    return [
        Row(f"body part {region.value}", {"body_part": (region.value.upper(), *body_parts.split())}, region),
        Row(f"anatomic region {region.value}", {"anatomic_region": tuple(codes.split())}, region),
        Row(
            f"description {region.value}",
            {"description": tuple(f"*{word}*" for word in descriptions.split())},
            region,
        ),
    ]


# Those by body part decide, then those by code, then those by description.
BUILT_IN = [
    _built_in(Region.BREAST, "MAMMA", "76752008 T-04000", "BREAST MAMMA 乳腺"),
    _built_in(Region.THYROID, "", "69748006 T-B6000", "THYROID 甲状腺"),
    _built_in(Region.LIVER, "", "10200004 T-62000", "LIVER HEPAT 肝"),
    _built_in(Region.KIDNEY, "", "64033007 T-71000", "KIDNEY RENAL 肾"),
    _built_in(
        Region.GYNECOLOGY,
        "UTERUS OVARY UTERUSANDOVARIES",
        "35039007 15497006 T-83000 T-87000",
        "GYNEC GYNAEC UTER OVAR 妇科",
    ),
    _built_in(Region.HEART, "CARDIAC", "80891009 T-32000", "ECHOCARDIO CARDIAC 心脏"),
    _built_in(
        Region.VESSEL,
        "CAROTID ARTERY VEIN CCA ICA ECA JUGULAR AORTA",
        "69105007 59820001 T-45010 T-40000",
        "CAROTID VASCULAR VENOUS ARTERIAL 血管",
    ),
]


def facts_of(headers: Sequence[Dataset], ae_titles: Iterable[str]) -> Facts:
    """Collect what a study's images say."""
    found: dict[str, set[str]] = {name: set() for name in MATCHES}
    found["ae_title"] |= {title.upper() for title in ae_titles}
    for header in headers:
        found["body_part"].add(_text(header, "BodyPartExamined"))
        for keyword, name in (("AnatomicRegionSequence", "anatomic_region"), ("ProcedureCodeSequence", "procedure")):
            for item in items(header, keyword):
                found[name] |= {_text(item, "CodeValue"), _text(item, "CodeMeaning")}
        for source in (header, *items(header, "RequestAttributesSequence")):
            found["description"] |= {_text(source, keyword) for keyword in DESCRIPTIONS}
    return Facts(**{name: frozenset(values - {""}) for name, values in found.items()})


def ask(facts: Facts, rows: Sequence[Row], language: Language) -> Question:
    """Choose the question: each part is what the first matching row gives; without one no region, a report, its default prompt, `language`.

    Built-in rows follow those given. If their images name the body parts of two regions, the region is unknown.
    """
    used: list[str] = []
    matching = [row for row in rows if _matches(row, facts)]
    prompt = next((row for row in matching if row.prompt is not None), None)
    spoken = next((row for row in matching if row.language), None)
    placed = next((row for row in matching if row.region), None) or _agreed(facts)
    tasked = next((row for row in matching if row.task), None)
    for row in (placed, spoken, tasked, prompt):
        if row and row.name not in used:
            used.append(row.name)
    return Question(
        placed.region if placed else None,
        (spoken.language if spoken else None) or language,
        (prompt.prompt if prompt else None) or "",
        tuple(used),
        (tasked.task if tasked else None) or Task.REPORT,
    )


def read_questions(path: Path) -> list[Row]:
    """Read the table from a TOML file: a table for each row, the first that matches wins.

        [chinese-carts]
        ae_title = "CART-ZH-*"
        language = "zh"

        [breast-clinic]
        ae_title = ["CART3", "CART4"]
        description = "*mamma*"
        region = "breast"

    Raises:
        NotPossibleHere: the file cannot be read, or is not valid.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NotPossibleHere(f"The questions file {path} cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise NotPossibleHere(f"The questions file {path} is not TOML ({error}).") from None
    return [_row(path, name, table) for name, table in tables.items()]


def _row(path: Path, name: str, table: Any) -> Row:
    if not isinstance(table, dict):
        raise NotPossibleHere(f"The questions file {path} is wrong at {name}: give each row a table.")
    if unknown := table.keys() - {*MATCHES, *GIVES}:
        raise NotPossibleHere(
            f"The questions file {path} has an unknown key, {name}.{min(unknown)}: use {', '.join((*MATCHES, *GIVES))}."
        )
    matches = {}
    for key in MATCHES:
        if key in table:
            listed = table[key] if isinstance(table[key], list) else [table[key]]
            matches[key] = tuple(str(pattern).upper() for pattern in listed)
    try:
        region = Region(table["region"]) if "region" in table else None
        language = Language(table["language"]) if "language" in table else None
        task = Task(table["task"]) if "task" in table else None
    except ValueError as error:
        raise NotPossibleHere(f"The questions file {path} is wrong at {name} ({error}).") from None
    if task not in (None, *TASKS):
        raise NotPossibleHere(
            f"The questions file {path} is wrong at {name}.task: choose from {', '.join(task.value for task in TASKS)}."
        )
    prompt = table.get("prompt")
    return Row(name, matches, region, language, None if prompt is None else str(prompt), task)


def _agreed(facts: Facts) -> Row | None:
    """Return the built-in row that gives the region; None if no row matches, or rows of one kind give different regions."""
    for kind in range(3):
        found = [rows[kind] for rows in BUILT_IN if _matches(rows[kind], facts)]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def _matches(row: Row, facts: Facts) -> bool:
    return all(
        any(fnmatch.fnmatchcase(value, pattern) for value in getattr(facts, name) for pattern in patterns)
        for name, patterns in row.matches.items()
    )


def _text(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword, "")
    return str(value or "").strip().upper()
