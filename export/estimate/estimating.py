"""Estimate stages, speed and memory of one model on one target, by the roofline; nothing is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from echovlm_edge.export.devices import Device, Reached
from echovlm_edge.export.estimate.roofline import Roofline, bound_by, bound_seconds, expected_seconds
from echovlm_edge.export.targets import TARGETS
from echovlm_edge.runtime.bundle.cost_model import Cost, CostModel
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.profiling.workloads import LARGE, Workload

CONTEXTS = (1024, 2048, 4096, 8192, 16384, 32768)
IMAGES = "images"  # the vision encoder and the projector together


@dataclass(frozen=True)
class Stage:
    """One stage of one workload."""

    workload: str
    stage: str
    read_gb: float
    tera_operations: float
    bound: str
    roofline_seconds: float
    expected_seconds: float


@dataclass(frozen=True)
class Outcome:
    """What a user would notice of one workload."""

    workload: str
    first_token_seconds: float
    tokens_per_second: float
    whole_seconds: float


@dataclass(frozen=True)
class Estimate:
    """What is estimated of one model on one target."""

    target: str
    device: str
    precision: str
    stages: tuple[Stage, ...]
    outcomes: tuple[Outcome, ...]
    memory_gb: dict[int, float]
    usable_gb: float
    reached: Reached

    @property
    def fits(self) -> bool:
        """Whether the shortest context fits."""
        return min(self.memory_gb.values()) <= self.usable_gb


def estimate(roofline: Roofline, precision: str, workloads: Sequence[Workload] = LARGE) -> Estimate:
    """Estimate each workload, and the memory by context.

    Raises:
        NotPossibleHere: the target is for no machine in particular.
    """
    device = roofline.target.device
    if device is None:
        raise NotPossibleHere(f"The target {roofline.target.name} is for any machine: estimate one of {_devices()}.")
    stages, outcomes, costs = [], [], roofline.costs
    for workload in workloads:
        found = [_stage(workload, name, cost, device) for name, cost in _costs(costs, workload)]
        stages += found
        seconds = {stage.stage: stage.expected_seconds for stage in found}
        first = sum(value for name, value in seconds.items() if name != "decode")
        speed = (workload.new_tokens - 1) / seconds["decode"]
        outcomes.append(Outcome(workload.name, first, speed, first + seconds["decode"]))
    longest = roofline.longest_context
    memory = {tokens: roofline.memory_gb(tokens) for tokens in CONTEXTS if tokens <= longest}
    memory = memory or {longest: roofline.memory_gb(longest)}
    return Estimate(
        roofline.target.name,
        device.name,
        precision,
        tuple(stages),
        tuple(outcomes),
        memory,
        device.usable_gb,
        device.reached,
    )


def _costs(model: CostModel, workload: Workload) -> Iterator[tuple[str, Cost]]:
    if frames := workload.encoded_frames:
        tokens = frames * workload.frame_tokens
        yield IMAGES, model.vision(tokens, frames) + model.projector(tokens, frames)
    yield "prefill", model.prefill(workload.prefill_tokens, workload.cached_tokens)
    yield "decode", model.decode(workload.new_tokens, workload.cached_tokens + workload.prefill_tokens)


def _stage(workload: Workload, name: str, cost: Cost, device: Device) -> Stage:
    return Stage(
        workload.name,
        name,
        cost.read_bytes / 1e9,
        cost.operations / 1e12,
        bound_by(cost, device),
        bound_seconds(cost, device),
        expected_seconds(cost, device, device.reached.images if name == IMAGES else device.reached.decoder),
    )


def _devices() -> str:
    return ", ".join(name for name, known in TARGETS.items() if known.device)
