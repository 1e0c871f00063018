"""The spool's tables, and their rows as values."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from echovlm_edge.runtime.dicom_node.spool.states import StudyState

SCHEMA = 1
TABLES = """
CREATE TABLE studies (
    id INTEGER PRIMARY KEY, uid TEXT NOT NULL UNIQUE, state TEXT NOT NULL, version INTEGER NOT NULL,
    ae_title TEXT NOT NULL, completed_by TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '',
    begun REAL NOT NULL, changed REAL NOT NULL);
CREATE TABLE instances (
    id INTEGER PRIMARY KEY, study INTEGER NOT NULL REFERENCES studies, sop_instance TEXT NOT NULL, sop_class TEXT NOT NULL,
    file TEXT NOT NULL, bytes INTEGER NOT NULL, digest BLOB NOT NULL, ae_title TEXT NOT NULL, received REAL NOT NULL,
    kind TEXT NOT NULL, header TEXT NOT NULL, choice TEXT, UNIQUE (study, sop_instance));
CREATE INDEX of_instances ON instances (sop_instance);
CREATE TABLE documents (
    id INTEGER PRIMARY KEY, study INTEGER NOT NULL REFERENCES studies, version INTEGER NOT NULL, kind TEXT NOT NULL,
    sop_class TEXT NOT NULL, sop_instance TEXT NOT NULL, series TEXT NOT NULL, content BLOB, record TEXT NOT NULL, made REAL NOT NULL);
CREATE TABLE deliveries (
    id INTEGER PRIMARY KEY, document INTEGER NOT NULL REFERENCES documents, destination TEXT NOT NULL, state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, error TEXT NOT NULL DEFAULT '', changed REAL NOT NULL);
CREATE TABLE procedure_steps (
    sop_instance TEXT PRIMARY KEY, study_uid TEXT NOT NULL, status TEXT NOT NULL, expected TEXT NOT NULL, changed REAL NOT NULL);
"""


@dataclass(frozen=True)
class Arrival:
    """An instance that has been received, before it is in the spool.

    Attributes:
        path: of its file in `incoming/`.
        study_uid, sop_instance, sop_class: its UIDs.
        digest: of the file's bytes.
        ae_title: of the sender.
        kind: `still`, `cine`, or `other` for one that is set aside.
        header: what is needed of its attributes, as DICOM JSON.
    """

    path: Path
    study_uid: str = field(repr=False)
    sop_instance: str = field(repr=False)
    sop_class: str
    digest: bytes = field(repr=False)
    ae_title: str
    kind: str
    header: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Study:
    """A study's row."""

    id: int
    uid: str = field(repr=False)
    state: StudyState
    version: int
    ae_title: str
    completed_by: str
    reason: str
    begun: float
    changed: float


@dataclass(frozen=True)
class Instance:
    """An instance's row; `choice` is what was decided about it, None for nothing yet."""

    id: int
    path: Path
    sop_instance: str = field(repr=False)
    sop_class: str
    ae_title: str
    kind: str
    header: dict[str, Any] = field(repr=False)
    choice: dict[str, Any] | None


@dataclass(frozen=True)
class Document:
    """A document to deliver: kind is `sr`, `pdf` or `fhir`; the UIDs of one that is not DICOM are those of the SR beside it."""

    kind: str
    sop_class: str
    sop_instance: str = field(repr=False)
    series: str = field(repr=False)
    content: bytes = field(repr=False)
    record: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Owed:
    """A delivery that is owed."""

    id: int
    study: int
    version: int
    destination: str
    document: Document
    attempts: int


@dataclass(frozen=True)
class Summary:
    """A study as `status` shows it."""

    study: Study
    instances: int
    bytes: int
    owed: int
    delivered: int
    error: str


def study_of(row: sqlite3.Row) -> Study:
    """Convert a row of `studies`."""
    return Study(
        row["id"],
        row["uid"],
        StudyState(row["state"]),
        row["version"],
        row["ae_title"],
        row["completed_by"],
        row["reason"],
        row["begun"],
        row["changed"],
    )


def document_of(row: sqlite3.Row, content: bytes) -> Document:
    """Convert a row of `documents`, with its bytes or without."""
    return Document(
        row["kind"], row["sop_class"], row["sop_instance"], row["series"], content, json.loads(row["record"])
    )
