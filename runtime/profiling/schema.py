"""The profile as JSON: every figure with its unit in its name or its docstring, read strictly, versioned."""

from __future__ import annotations

from dataclasses import asdict, field
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile, ZipFile, is_zipfile

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.contracts.stages import UNACCOUNTED, words
from echovlm_edge.runtime.profiling.distributions import Distribution
from echovlm_edge.runtime.resources.versioned_json import VersionedJson

IN_ARCHIVE = "profile.json"  # its name in an archive of echovlm-accept
VERSION = 2  # 1 was a single request's, without runs

_STRICT = ConfigDict(extra="forbid")
_STAGE_OF_PART = {"vision_encoder": "vision", "projector": "projector"}  # the decoder's has two, which are its phases


@dataclass(frozen=True, config=_STRICT)
class Machine:
    """The machine that was measured; `governor` is that of the CPU's clock, `kernels` is that of this project's operators."""

    cpu: str
    cores: int
    memory_gb: float
    system: str
    python: str
    governor: str | None = None
    gpu: str | None = None
    kernels: str | None = None
    device: str | None = None  # as a device tree names it: a Jetson's model
    toolchain: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class BundleFacts:
    """The bundle that was measured."""

    model: str
    bundle_id: str
    target: str
    precision: str
    max_sequence: int


@dataclass(frozen=True, config=_STRICT)
class Conditions:
    """How it was measured: `where` is this process or a server's address; `slots` is the number of sequences at once."""

    where: str
    warmups: int
    runs: int
    threads: int | None = None
    slots: int | None = None


@dataclass(frozen=True, config=_STRICT)
class Interval:
    """A piece of a run: seconds from the request's start."""

    stage: str
    start: float
    seconds: float


@dataclass(frozen=True, config=_STRICT)
class Run:
    """One request, by a clock outside of the engine.

    Attributes:
        seconds: from asking to the last event.
        first_token: seconds to it; None where no token came.
        stages: seconds by stage; each moment counts once.
        gaps: seconds between a token and the next; of a server, between texts that arrive, which a fast model's tokens share.
        prompt_tokens: images' included.
        image_tokens: of these, images'.
        generated_tokens: written.
        reused_tokens: of the prompt's, prefilled before.
        steps: of the decoder that wrote its tokens after the first, several at once where drafts were right; None: not known.
    """

    seconds: float
    first_token: float | None
    stages: dict[str, float]
    gaps: tuple[float, ...]
    prompt_tokens: int
    image_tokens: int
    generated_tokens: int
    reused_tokens: int
    steps: int | None = None

    @property
    def tokens_per_step(self) -> float | None:
        """Return how many of the tokens after the first a step wrote."""
        return (self.generated_tokens - 1) / self.steps if self.steps else None

    @property
    def saved_steps(self) -> int:
        """Return how many steps drafts saved, 0 where that is not known."""
        return self.generated_tokens - 1 - self.steps if self.steps is not None else 0

    @property
    def accounted(self) -> float:
        """Return the share of the time that the stages account for."""
        return sum(self.stages.values()) / self.seconds

    def stage_seconds(self, name: str) -> float:
        """Return the seconds of a stage, or of the time that no stage accounts for."""
        if name == UNACCOUNTED:
            return max(self.seconds - sum(self.stages.values()), 0.0)
        return self.stages.get(name, 0.0)

    @property
    def per_token(self) -> float | None:
        """Return the seconds for each token after the first."""
        return sum(self.gaps) / (self.generated_tokens - 1) if self.gaps and self.generated_tokens > 1 else None


@dataclass(frozen=True, config=_STRICT)
class StageFigures:
    """Seconds a run, and the share of all runs' time."""

    seconds: Distribution
    share: float


@dataclass(frozen=True, config=_STRICT)
class Energy:
    """Joules per request and mean watts, by component; `unknown` is the reason where nothing could be measured."""

    source: str | None = None
    joules: dict[str, float] = field(default_factory=dict)
    watts: dict[str, float] = field(default_factory=dict)
    unknown: str | None = None


@dataclass(frozen=True, config=_STRICT)
class RooflinePoint:
    """A stage: what it reads and computes, as counted from the model's shape, in the median of its times."""

    stage: str
    read_bytes: float
    operations: float
    seconds: float

    @property
    def gbps(self) -> float:
        """Return bytes a second, in 1e9."""
        return self.read_bytes / self.seconds / 1e9

    @property
    def gops(self) -> float:
        """Return operations a second, in 1e9 (a multiply-add is two)."""
        return self.operations / self.seconds / 1e9


@dataclass(frozen=True, config=_STRICT)
class Ceilings:
    """What this machine reads (1e9 bytes a second) and multiplies (1e9 int8 operations a second) at most, as measured."""

    read_gbps: float
    int8_gops: float
    threads: int


@dataclass(frozen=True, config=_STRICT)
class WorkloadFigures:
    """One workload's runs and what follows from them.

    Attributes:
        name: as in `Workload`; the next ones too, up to `seen`.
        runs: each request measured; with several clients, all of theirs.
        stages: by stage, the unaccounted rest too.
        end_to_end: seconds.
        ttft: seconds to the first token.
        gaps: seconds between tokens, over all runs.
        tpot: seconds for each token after the first, by run.
        tokens_per_second: of all clients together, while they ran.
        memory: peak bytes by kind.
        energy: of a request.
        roofline: a point for each stage whose work is known from the model's shape.
        timeline: of the run with the median time, each moment once; empty for a server's.
    """

    name: str
    frames: int
    width: int
    height: int
    text_tokens: int
    new_tokens: int
    clients: int
    seen: bool
    runs: tuple[Run, ...]
    stages: dict[str, StageFigures]
    end_to_end: Distribution
    ttft: Distribution | None
    gaps: Distribution | None
    tpot: Distribution | None
    tokens_per_second: float
    memory: dict[str, int]
    energy: Energy
    roofline: tuple[RooflinePoint, ...] = ()
    timeline: tuple[Interval, ...] = ()


@dataclass(frozen=True, config=_STRICT)
class Operator:
    """One operator of a part in one phase: `layer` is this project's name for where it stands, `seconds` are of all `calls`."""

    part: str
    phase: str
    layer: str
    name: str
    kind: str
    calls: int
    seconds: float

    @property
    def stage(self) -> str:
        """Return the stage that it works in, in words; `decoder` where the phase is not known."""
        return words(_STAGE_OF_PART[self.part]) if self.part in _STAGE_OF_PART else self.phase or self.part


@dataclass(frozen=True, config=_STRICT)
class Profile:
    """A profile, as `--json` writes it."""

    schema: Literal["echovlm-profile"]
    version: int
    created: str  # ISO 8601, UTC
    machine: Machine
    bundle: BundleFacts
    conditions: Conditions
    workloads: tuple[WorkloadFigures, ...]
    ceilings: Ceilings | None = None
    operators: tuple[Operator, ...] = ()


_FILE = VersionedJson(
    "echovlm-profile",
    VERSION,
    TypeAdapter(Profile),
    named="a profile",
    give="give a file that echovlm-profile --json or echovlm-accept wrote",
    again="measure again with it",
    damaged="measure again",
)


def dump(profile: Profile) -> dict[str, Any]:
    """Convert a profile to plain values for JSON."""
    return asdict(profile)


def read(path: Path) -> Profile:
    """Read a profile that `--json` wrote, or that of an archive of echovlm-accept.

    Raises:
        InvalidInput: there is no such file, or it is of another kind or version; the sentence names it.
    """
    if not is_zipfile(path):
        return _FILE.read(path)
    try:
        with ZipFile(path) as archive:
            return _FILE.parse(archive.read(IN_ARCHIVE), path)
    except (BadZipFile, KeyError, OSError) as error:
        raise InvalidInput(f"{path} holds no {IN_ARCHIVE} ({type(error).__name__}): {_FILE.give}.") from None
