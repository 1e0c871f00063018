"""An acceptance as JSON: what each step found, each figure with its limit, and the verdict; versioned, read strictly."""

from __future__ import annotations

from dataclasses import field
from enum import StrEnum
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from echovlm_edge.runtime.profiling.schema import BundleFacts, Machine, Profile
from echovlm_edge.runtime.resources.versioned_json import VersionedJson

VERSION = 1
_STRICT = ConfigDict(extra="forbid")


class State(StrEnum):
    """How something ended; what was skipped did not pass."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, config=_STRICT)
class Check:
    """One thing that a step checked, and what it found."""

    what: str
    state: State
    detail: str = ""


@dataclass(frozen=True, config=_STRICT)
class Figure:
    """A measured figure; its name, such as `W1.first_token_seconds`, has its unit."""

    name: str
    value: float


@dataclass(frozen=True, config=_STRICT)
class Sample:
    """One moment under load; None where this machine does not report it.

    Attributes:
        seconds: since the load began.
        tokens_per_second: written since the sample before.
        celsius: the hottest sensor's.
        mhz: the CPU's fastest core's clock, or the GPU's.
        watts: since the sample before, all that the machine's counter counts.
        throttled: whether the machine holds its clocks back, for heat or power.
    """

    seconds: float
    tokens_per_second: float
    celsius: float | None = None
    mhz: float | None = None
    watts: float | None = None
    throttled: bool | None = None


@dataclass(frozen=True, config=_STRICT)
class Outcome:
    """What a step found.

    Attributes:
        checks: the step fails if one of them did.
        figures: measured.
        profile: of the workloads that it measured.
        samples: under load, in order.
        facts: further values, as the step describes them.
    """

    checks: tuple[Check, ...] = ()
    figures: tuple[Figure, ...] = ()
    profile: Profile | None = None
    samples: tuple[Sample, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class StepResult:
    """How a step ended, and what it found; `reason` is why it failed or was skipped."""

    name: str
    what: str
    state: State
    seconds: float
    reason: str = ""
    outcome: Outcome = field(default_factory=Outcome)


@dataclass(frozen=True, config=_STRICT)
class Judged:
    """A figure and its limit in words; the value is None where a limit is given for what was not measured."""

    name: str
    value: float | None
    limit: str
    state: State


@dataclass(frozen=True, config=_STRICT)
class Acceptance:
    """An acceptance, as the archive has it.

    Attributes:
        created: ISO 8601, UTC.
        passed: the verdict.
        failures: why it did not pass, a sentence each.
        name: what `--name` said; nothing else names the place or a person.
        quick: measured with few runs: the figures mean little.
        judged: every figure that was measured or has a limit.
    """

    schema: Literal["echovlm-acceptance"]
    version: int
    created: str
    passed: bool
    failures: tuple[str, ...]
    name: str
    quick: bool
    machine: Machine
    bundle: BundleFacts
    steps: tuple[StepResult, ...]
    judged: tuple[Judged, ...]


STEP = TypeAdapter(StepResult)
FILE = VersionedJson(
    "echovlm-acceptance",
    VERSION,
    TypeAdapter(Acceptance),
    named="an acceptance",
    give="give an archive that echovlm-accept wrote",
    again="run echovlm-accept again with it",
    damaged="copy it again, or run echovlm-accept again",
)
