"""Turn measurements into figures: distributions, shares, rates and the points of the roofline."""

from __future__ import annotations

from statistics import median

from echovlm_edge.runtime.bundle.cost_model import Cost, CostModel
from echovlm_edge.runtime.contracts.request import Span, Stage
from echovlm_edge.runtime.contracts.stages import ORDER
from echovlm_edge.runtime.engine.clock import pieces
from echovlm_edge.runtime.profiling.distributions import Distribution
from echovlm_edge.runtime.profiling.measurement.measurer import Measured, Measurement
from echovlm_edge.runtime.profiling.schema import Interval, RooflinePoint, Run, StageFigures, WorkloadFigures


def summarise(measurement: Measurement, costs: CostModel | None) -> WorkloadFigures:
    """Compute a workload's figures; `costs` is the bundle's model, None where it is not at hand."""
    workload, runs = measurement.workload, [measured.run for measured in measurement.requests]
    total = sum(run.seconds for run in runs)
    stages = {
        name: StageFigures(Distribution.of(seconds), sum(seconds) / total)
        for name in ORDER
        if any(seconds := [run.stage_seconds(name) for run in runs])
    }
    gaps = [gap for run in runs for gap in run.gaps]
    first = [run.first_token for run in runs if run.first_token is not None]
    per_token = [run.per_token for run in runs if run.per_token is not None]
    return WorkloadFigures(
        name=workload.name,
        frames=workload.frames,
        width=workload.width,
        height=workload.height,
        text_tokens=workload.text_tokens,
        new_tokens=workload.new_tokens,
        clients=workload.clients,
        seen=workload.seen,
        runs=tuple(runs),
        stages=stages,
        end_to_end=Distribution.of([run.seconds for run in runs]),
        ttft=Distribution.of(first) if first else None,
        gaps=Distribution.of(gaps) if gaps else None,
        tpot=Distribution.of(per_token) if per_token else None,
        tokens_per_second=sum(run.generated_tokens for run in runs) / measurement.seconds,
        memory=measurement.memory,
        energy=measurement.energy,
        roofline=_roofline(runs, stages, workload.frames, costs) if costs and workload.clients == 1 else (),
        timeline=_timeline(typical(measurement)),
    )


def typical(measurement: Measurement) -> Measured:
    """Return the request whose time is the median, or the next above it."""
    ordered = sorted(measurement.requests, key=lambda measured: measured.run.seconds)
    return ordered[len(ordered) // 2]


def _timeline(request: Measured) -> tuple[Interval, ...]:
    spans = [Span(Stage(interval.stage), interval.start, interval.seconds) for interval in request.intervals]
    return tuple(Interval(stage.value, start, seconds) for stage, start, seconds in pieces(spans, request.run.seconds))


def _roofline(
    runs: list[Run], stages: dict[str, StageFigures], frames: int, costs: CostModel
) -> tuple[RooflinePoint, ...]:
    run = runs[0]
    work: dict[str, Cost] = {}
    if run.image_tokens and frames:
        work["vision"] = costs.vision(run.image_tokens, frames)
        work["projector"] = costs.projector(run.image_tokens, frames)
    reused = round(median(run.reused_tokens for run in runs))
    work["prefill"] = costs.prefill(run.prompt_tokens - reused, reused)
    if run.generated_tokens > 1:
        # A step that writes several tokens reads the weights once.
        written = run.generated_tokens if run.steps is None else 1 + round(median(each.steps or 0 for each in runs))
        work["decode"] = costs.decode(written, run.prompt_tokens)
    return tuple(
        RooflinePoint(name, cost.read_bytes, cost.operations, stages[name].seconds.median)
        for name, cost in work.items()
        if name in stages and stages[name].seconds.median > 0
    )
