"""The evaluation as JSON: every row with its answer and statistics, every figure with its interval, read strictly, versioned."""

from __future__ import annotations

import json
from dataclasses import asdict, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from echovlm_edge.runtime.evaluation.data.recognition import RowTask
from echovlm_edge.runtime.evaluation.scoring.metric import Metric, Statistics
from echovlm_edge.runtime.resources.versioned_json import VersionedJson

VERSION = 1
FILE = "evaluation.json"
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_STRICT)
class ModelFacts:
    """The bundle that answered, and the visual tokens that it read of a frame at most; None if its server did not say."""

    model: str
    bundle_id: str
    target: str
    precision: str
    image_tokens: int | None = None


@dataclass(frozen=True, config=_STRICT)
class Settings:
    """What decides an answer besides its row: the bundle, and how tokens are chosen; see `Sampling`."""

    model: ModelFacts
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    seed: int


@dataclass(frozen=True, config=_STRICT)
class ScoredRow:
    """A row, its answer, and what it adds to each metric.

    Attributes:
        number: counted from 1, over all files; `name` and `key` are those of the data, too.
        pictures: file names, below the folder of pictures.
        finish: `stop` if the model ended its text, `length` if a limit did.
        tokens: written.
        not_sent: what the row has and the service takes nothing of.
        statistics: sums by the metric's key: (share, 1), (right, asked), or the counts of corpus BLEU.
    """

    number: int
    name: str
    id: str = field(repr=False)
    key: str
    task: RowTask
    region: str
    language: str
    question: str = field(repr=False)
    reference: str = field(repr=False)
    pictures: tuple[str, ...]
    answer: str = field(repr=False)
    finish: str
    tokens: int
    not_sent: tuple[str, ...]
    statistics: dict[str, Statistics]


@dataclass(frozen=True, config=_STRICT)
class SkippedRow:
    """A row without a figure, and why, as a clause: `has no answer`."""

    number: int
    name: str
    reason: str


@dataclass(frozen=True, config=_STRICT)
class Figure:
    """One metric over one group of rows.

    Attributes:
        group: `all`, or a kind and a value: `region: breast`.
        metric: its key.
        rows: over how many.
        value: 0 to 100.
        low: where its 95 % interval begins; None for a single row.
        high: where it ends.
    """

    group: str
    metric: str
    rows: int
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, config=_STRICT)
class Evaluation:
    """An evaluation, as `evaluation.json` holds it."""

    schema: Literal["echovlm-evaluate"]
    version: int
    created: str  # ISO 8601, UTC
    where: str  # `in process`, or a server's address
    data: tuple[str, ...]  # file names
    settings: Settings
    metrics: tuple[Metric, ...]
    figures: tuple[Figure, ...]
    rows: tuple[ScoredRow, ...]
    skipped: tuple[SkippedRow, ...]
    notes: tuple[str, ...]  # what a reader of the figures must know, a sentence each


_FILE = VersionedJson(
    "echovlm-evaluate",
    VERSION,
    TypeAdapter(Evaluation),
    named="an evaluation",
    give="give the --output folder of echovlm-evaluate run",
    again="run it again, which asks nothing that is answered already",
    damaged="run it again",
    missing="give the --output folder of a run that ended",
)


def to_json(evaluation: Evaluation) -> bytes:
    """Convert an evaluation to its file's content."""
    return json.dumps(asdict(evaluation), ensure_ascii=False, indent=1, default=_name).encode()


def _name(value: Any) -> Any:
    return value.value


def read(path: Path) -> Evaluation:
    """Read an evaluation, given as its file or as the folder that a run wrote.

    Raises:
        InvalidInput: there is no such file, or it is of another kind or version; the sentence names it.
    """
    return _FILE.read(path / FILE if path.is_dir() else path)
