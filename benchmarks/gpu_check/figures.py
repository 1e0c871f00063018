"""The results of a check as JSON: every figure with its unit in its name or its docstring, read strictly, versioned."""

from __future__ import annotations

import json
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from echovlm_edge.runtime.bundle.golden_tokens import LARGEST_ERROR
from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.resources.atomic_file import write_whole

SCHEMA, VERSION = "echovlm-gpu-check", 1

_STRICT = ConfigDict(extra="forbid")

State = Literal["done", "failed", "left out"]


@dataclass(frozen=True, config=_STRICT)
class StageEnd:
    """How a stage ended; `reason` is one sentence where it is not done."""

    name: str
    state: State
    seconds: float
    reason: str = ""


@dataclass(frozen=True, config=_STRICT)
class Bandwidth:
    """Of the GPU's memory, 1e9 bytes a second: a copy counts bytes read and written; `read_gbps` is a kernel that only reads."""

    copy_gbps: float
    read_gbps: float


@dataclass(frozen=True, config=_STRICT)
class MachineFigures:
    """The machine.

    Attributes:
        gpu: its product name.
        sm: its compute capability times ten, as 90.
        cuda: the release that its driver supports.
        kernels: whether this install has our kernels for it.
        packages: versions of what is installed.
    """

    gpu: str
    sm: int
    driver: str
    cuda: str
    memory_gb: float
    power_limit_watts: float | None
    clock_max_mhz: int | None
    kernels: bool
    cpu: str
    cores: int
    packages: dict[str, str]
    bandwidth: Bandwidth | None = None


@dataclass(frozen=True, config=_STRICT)
class DeviceTest:
    """One test of tests/gpu; `reason` is why it was skipped, or the first line of its failure."""

    name: str
    outcome: Literal["passed", "failed", "skipped"]
    seconds: float
    reason: str = ""


@dataclass(frozen=True, config=_STRICT)
class TestFigures:
    """The tests that ended, and the sentences that they noted."""

    __test__ = False  # no test, for pytest

    tests: tuple[DeviceTest, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, config=_STRICT)
class Divergence:
    """The first token of a sequence that is not the reference's; `margin` is between the two tokens' logits in the reference."""

    sequence: str
    step: int
    expected: int
    written: int
    margin: float


@dataclass(frozen=True, config=_STRICT)
class TokenCase:
    """Greedy tokens of one bundle, compared with a reference on the same inputs.

    Attributes:
        bundle: its model and precision.
        reference: what it is compared with.
        operator: whether DualPathMoE ran by our kernels; else spelled out.
        batch: sequences in each decoder call.
        tokens: compared, of all sequences, up to the first divergence of each.
        largest_logit: of the reference.
        largest_error: of a logit.
        divergences: each sequence's first.
    """

    bundle: str
    reference: str
    operator: bool
    batch: int
    tokens: int
    largest_logit: float
    largest_error: float
    divergences: tuple[Divergence, ...]

    @property
    def bound(self) -> float:
        """Return the margin within which two tokens may change places: the error of both logits."""
        return 2 * self.largest_error

    @property
    def good(self) -> bool:
        """Whether every divergence is a near tie, and the logits are those of the reference but for rounding."""
        near = all(divergence.margin <= self.bound for divergence in self.divergences)
        return near and self.largest_error <= LARGEST_ERROR * self.largest_logit


@dataclass(frozen=True, config=_STRICT)
class TokenFigures:
    """All bundles, alone and in batches."""

    cases: tuple[TokenCase, ...]


@dataclass(frozen=True, config=_STRICT)
class ReuseCase:
    """A request whose images had been read.

    Attributes:
        bundle: its model and precision.
        what: what was asked, after what.
        prompt_tokens: of the whole prompt.
        text_tokens: of it after the last image.
        prefilled_tokens: that were computed for this request.
        first_seconds, cold_first_seconds: to the first token, with and without reuse.
        differs_at: the first token that is not the one of an engine that reuses nothing; None if all are the same.
    """

    bundle: str
    what: str
    prompt_tokens: int
    text_tokens: int
    prefilled_tokens: int
    first_seconds: float
    cold_first_seconds: float
    differs_at: int | None

    @property
    def good(self) -> bool:
        """Whether only the text was computed, in whole blocks, and the tokens are the same."""
        return self.prefilled_tokens < self.text_tokens + 16 and self.differs_at is None


@dataclass(frozen=True, config=_STRICT)
class ReuseFigures:
    """All requests."""

    cases: tuple[ReuseCase, ...]


@dataclass(frozen=True, config=_STRICT)
class FirstToken:
    """A workload's first token: medians of seconds, in all and by stage."""

    workload: str
    image_tokens: int
    prompt_tokens: int
    seconds: float
    stages: dict[str, float]


@dataclass(frozen=True, config=_STRICT)
class Decoding:
    """Steps of some sequences, one decoder call each.

    Attributes:
        sequences: in a call.
        cached: tokens of each in its KV cache, in the middle of the steps.
        steps: measured.
        step_seconds: the median.
        read_bytes: that a step reads, as counted from the model's shape.
        watts: the GPU's mean power during the steps; None where it does not count its energy.
    """

    sequences: int
    cached: int
    steps: int
    step_seconds: float
    read_bytes: float
    watts: float | None = None

    @property
    def tokens_per_second(self) -> float:
        """Return tokens a second of all sequences together."""
        return self.sequences / self.step_seconds

    @property
    def joules_per_token(self) -> float | None:
        """Return the GPU's energy of one token."""
        return None if self.watts is None else self.watts / self.tokens_per_second

    @property
    def gbps(self) -> float:
        """Return the bytes read a second, in 1e9."""
        return self.read_bytes / self.step_seconds / 1e9


@dataclass(frozen=True, config=_STRICT)
class OperatorTime:
    """Milliseconds of all nodes, or kernels, of a name in one decoder call.

    `clock` is `host` for the time that ONNX Runtime took to launch an operator, `GPU` for the time that a kernel ran.
    """

    phase: str
    name: str
    calls: float
    milliseconds: float
    clock: Literal["host", "GPU"]


@dataclass(frozen=True, config=_STRICT)
class DraftedStep:
    """Seconds of one sequence's step that verifies a draft: so many rows, the token before the draft included; the fastest of ten."""

    rows: int
    seconds: float


@dataclass(frozen=True, config=_STRICT)
class PublishedFigures:
    """The published size with random weights.

    Attributes:
        layers, precision: of the decoder.
        operator: whether DualPathMoE ran by our kernels.
        bundle_gb: the bundle's files.
        made_seconds: writing it; None where it was there.
        load_seconds: until it could be asked.
        gpu_gb: of the GPU's memory in use when it was loaded, whoever uses it.
        bandwidth: measured in this stage.
    """

    layers: int
    precision: str
    operator: bool
    bundle_gb: float
    made_seconds: float | None
    load_seconds: float
    gpu_gb: float | None
    bandwidth: Bandwidth | None = None
    first_tokens: tuple[FirstToken, ...] = ()
    decoding: tuple[Decoding, ...] = ()
    drafted: tuple[DraftedStep, ...] = ()
    operators: tuple[OperatorTime, ...] = ()


@dataclass(frozen=True, config=_STRICT)
class EagerSteps:
    """Seconds of a step of so many sequences."""

    sequences: int
    seconds: float


@dataclass(frozen=True, config=_STRICT)
class EagerFigures:
    """Our PyTorch model in bfloat16 with random weights: medians of seconds.

    Attributes:
        torch: its version.
        layers: of the decoder, as many as fit.
        vision_seconds: vision encoder and projector on a frame of W1.
        prefill_tokens, prefill_seconds: the prompt of W1.
        steps: with as many tokens in the cache.
        few_layers: of a shorter decoder, for `few_seconds` and `compiled_seconds`: a step of one sequence, eager and by torch.compile.
        compiled_reason: why there is no `compiled_seconds`.
    """

    torch: str
    layers: int
    vision_seconds: float
    prefill_tokens: int
    prefill_seconds: float
    steps: tuple[EagerSteps, ...] = ()
    few_layers: int = 0
    few_seconds: float | None = None
    compiled_seconds: float | None = None
    compiled_reason: str = ""


@dataclass(frozen=True, config=_STRICT)
class Results:
    """A check; a stage that did not run has no figures. `rehearsal`: without a GPU, so that times mean nothing."""

    schema: Literal["echovlm-gpu-check"] = "echovlm-gpu-check"
    version: int = VERSION
    created: str = ""  # ISO 8601, UTC
    commit: str = ""
    rehearsal: bool = False
    stages: tuple[StageEnd, ...] = ()
    machine: MachineFigures | None = None
    tests: TestFigures | None = None
    tokens: TokenFigures | None = None
    reuse: ReuseFigures | None = None
    published: PublishedFigures | None = None
    eager: EagerFigures | None = None


FIGURES: dict[str, type] = {
    "machine": MachineFigures,
    "tests": TestFigures,
    "tokens": TokenFigures,
    "reuse": ReuseFigures,
    "published": PublishedFigures,
    "eager": EagerFigures,
}


@dataclass(frozen=True, config=_STRICT)
class Part:
    """What a stage's process leaves behind: how it ended, if it did, and its figures so far, as plain values."""

    state: State | None = None
    reason: str = ""
    figures: dict[str, Any] | None = field(default=None)


_RESULTS, _PART = TypeAdapter(Results), TypeAdapter(Part)


def write_results(path: Path, results: Results) -> None:
    """Write results as JSON, atomically."""
    write_whole(path, _RESULTS.dump_json(results, indent=1))


def read_results(path: Path) -> Results:
    """Read results.

    Raises:
        InvalidInput: there is no such file, or it holds something else; the sentence names it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] == SCHEMA and content["version"] != VERSION:
            raise InvalidInput(f"{path} has version {content['version']}, this program reads {VERSION}: check again.")
        return _RESULTS.validate_json(json.dumps(content))
    except OSError as error:
        raise InvalidInput(f"The results {path} cannot be read ({error.strerror}).") from None
    except (ValidationError, ValueError, KeyError, TypeError):
        raise InvalidInput(f"{path} is no file of make gpu-check's results: give the one that it wrote.") from None


def write_part(path: Path, part: Part) -> None:
    """Write what a stage has so far, atomically."""
    write_whole(path, _PART.dump_json(part))


def read_part(path: Path) -> Part:
    """Read what a stage left; nothing where it left nothing."""
    return _PART.validate_json(path.read_bytes()) if path.exists() else Part()
