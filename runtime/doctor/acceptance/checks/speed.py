"""The profile's steps, one a workload: alone and eight at a time, by echovlm-profile's own measurement."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

from echovlm_edge.runtime.bundle.cost_model import CostModel
from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.doctor.acceptance.schema import Figure, Outcome
from echovlm_edge.runtime.doctor.acceptance.setting import Setting, Skipped
from echovlm_edge.runtime.profiling.measurement.energy import open_meter
from echovlm_edge.runtime.profiling.measurement.machine import this_machine
from echovlm_edge.runtime.profiling.measurement.measurer import InProcess, Measurer
from echovlm_edge.runtime.profiling.measurement.memory import gpu_memory
from echovlm_edge.runtime.profiling.measurement.opening import measured_engine
from echovlm_edge.runtime.profiling.measurement.summary import summarise
from echovlm_edge.runtime.profiling.schema import VERSION, Conditions, Profile, WorkloadFigures
from echovlm_edge.runtime.profiling.workloads import Workload

RUNS, WARMUPS = 5, 1  # a comparison of two profiles needs as many runs
QUICK_TOKENS = 8  # new tokens of a quick run
FIGURES = ("first_token_seconds", "seconds", "tokens_per_second", "joules")
TOGETHER = 8


def measure(setting: Setting, workload: Workload) -> Outcome:
    """Measure a workload alone, then as many at a time as the server decodes, at most eight.

    Raises:
        Skipped: the bundle's context does not hold it.
    """
    meter, runs, warmups = open_meter(), 1 if setting.quick else RUNS, 0 if setting.quick else WARMUPS
    engine = measured_engine(setting.bundle, setting.slots)
    costs = CostModel.of(setting.bundle.manifest)
    found: list[WorkloadFigures] = []
    try:
        target, facts = InProcess(engine), InProcess(engine).facts()
        for one in (workload, at_once(workload)):
            asked = replace(one, new_tokens=QUICK_TOKENS) if setting.quick else one
            setting.say(f"{asked.name}: {asked.words}, {asked.clients} at a time")
            measurer = Measurer(target, runs if one.clients == 1 else 1, warmups, meter, gpu_memory())
            found.append(summarise(measurer.measure(asked), costs))
    except InvalidInput as error:
        raise Skipped(str(error)) from None
    finally:
        engine.close()
        if meter:
            meter.close()
    conditions = Conditions("in process", warmups, runs, None, setting.slots)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    profile = Profile("echovlm-profile", VERSION, created, this_machine(), facts, conditions, tuple(found))
    return Outcome(figures=tuple(figure for each in found for figure in figures(each)), profile=profile)


def at_once(workload: Workload) -> Workload:
    """Return the workload of eight clients."""
    return replace(workload, name=f"{workload.name}-c{TOGETHER}", clients=TOGETHER)


def figures(found: WorkloadFigures) -> Iterator[Figure]:
    """Yield a workload's figures: medians of its runs, and the tokens of all clients together."""
    joules = sum(found.energy.joules.values()) if found.energy.joules else None
    values = (found.ttft.median if found.ttft else None, found.end_to_end.median, found.tokens_per_second, joules)
    for name, value in zip(FIGURES, values, strict=True):
        if value is not None:
            yield Figure(f"{found.name}.{name}", value)


def figure_names(workload: Workload) -> list[str]:
    """Return the names of all figures that a workload may have."""
    return [f"{one.name}.{name}" for one in (workload, at_once(workload)) for name in FIGURES]
