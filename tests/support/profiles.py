"""Make profiles of random runs, as a noisy machine would."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from echovlm_edge.runtime.profiling.measurement.measurer import Measured, Measurement
from echovlm_edge.runtime.profiling.measurement.summary import summarise
from echovlm_edge.runtime.profiling.schema import (
    VERSION,
    BundleFacts,
    Ceilings,
    Conditions,
    Energy,
    Interval,
    Machine,
    Operator,
    Profile,
    Run,
)
from echovlm_edge.runtime.profiling.workloads import W1, Workload

MACHINE = Machine("a CPU", 2, 24.0, "Linux", "3.11")
STAGES = {"decode_images": 0.01, "preprocess": 0.02, "vision": 0.3, "projector": 0.02, "prefill": 0.4, "decode": 0.6}


def profile(
    seed: int,
    runs: int = 10,
    noise: float = 0.03,
    slower: dict[str, float] | None = None,
    workload: Workload = W1,
) -> Profile:
    """Make `runs` requests of `STAGES` with `noise` per stage and a third of it per run; some stages are multiplied by a factor."""
    generator = np.random.default_rng(seed)
    requests = []
    for _ in range(runs):
        together = generator.normal(0, noise / 3)
        stages = {
            name: seconds * (slower or {}).get(name, 1.0) * float(np.exp(together + generator.normal(0, noise)))
            for name, seconds in STAGES.items()
        }
        gaps = tuple(stages["decode"] / 19 * generator.uniform(0.9, 1.1, 19))
        total = sum(stages.values()) * 1.001
        first = total - sum(gaps)
        intervals, start = [], 0.0
        for name, seconds in stages.items():
            intervals.append(Interval(name, start, seconds))
            start += seconds
        run = Run(total, first, stages, gaps, 451, 391, 20, 0)
        requests.append(Measured(run, tuple(intervals)))
    memory = {"resident": 9_000_000_000, "own": 1_000_000_000}
    seconds = sum(request.run.seconds for request in requests)
    measurement = Measurement(workload, tuple(requests), seconds, memory, Energy(unknown="no counter"))
    return Profile(
        "echovlm-profile",
        VERSION,
        "2026-01-01T00:00:00+00:00",
        MACHINE,
        BundleFacts("a model", "0123456789abcdef", "cpu", "int4", 4096),
        Conditions("in process", 1, runs),
        (summarise(measurement, None),),
    )


def with_everything(told: Profile) -> Profile:
    """Add operators, ceilings and energy to a profile."""
    operators = tuple(
        Operator("decoder", phase, f"layer {layer}, {half}", f"node_{layer}", kind, 8, 0.01 * (layer + 1))
        for phase in ("prefill", "decode")
        for layer in range(4)
        for half, kind in (("attention", "GroupQueryAttention"), ("DualPathMoE", "DualPathMoE"))
    )
    figures = replace(told.workloads[0], energy=Energy("RAPL", {"package-0": 40.0}, {"package-0": 30.0}))
    return replace(told, operators=operators, ceilings=Ceilings(30.0, 900.0, 2), workloads=(figures,))
