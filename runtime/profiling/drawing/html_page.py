"""Make one self-contained HTML page of one or more profiles, which works from a file, without a network, in light and dark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from echovlm_edge.runtime.contracts.stages import ORDER, words
from echovlm_edge.runtime.profiling.comparison.compare import (
    DEFAULT,
    FigureChange,
    Margins,
    compare,
    percent,
    signed,
    summary,
)
from echovlm_edge.runtime.profiling.distributions import PERCENTILES, Distribution
from echovlm_edge.runtime.profiling.drawing import charts
from echovlm_edge.runtime.profiling.drawing.rendering import plotting_library, render
from echovlm_edge.runtime.profiling.schema import Ceilings, Profile, WorkloadFigures
from echovlm_edge.runtime.profiling.table import how_to_read, milliseconds

LARGEST_TABLE = 2000  # operators


def html_page(profiles: Mapping[str, Profile], margins: Margins = DEFAULT) -> str:
    """Make the page of profiles by label; each but the first is compared with the first.

    Raises:
        NotPossibleHere: the plotting library is not installed.
        InvalidInput: two of them cannot be compared.
    """
    library = plotting_library("write --json here and make the page elsewhere, with echovlm-profile page")
    first = next(iter(profiles.values()))
    name = next(iter(profiles))
    drawn = {
        label: _profile(profile, None if profile is first else compare(first, profile, margins), name, margins)
        for label, profile in profiles.items()
    }
    return render("page.html.jinja", f"{first.bundle.model}: profile", library, {"first": name, "profiles": drawn})


def _profile(
    profile: Profile, compared: Mapping[str, tuple[FigureChange, ...]] | None, first: str, margins: Margins
) -> dict[str, Any]:
    total = sum(operator.seconds for operator in profile.operators) or 1.0
    slowest = sorted(profile.operators, key=lambda operator: -operator.seconds)[:LARGEST_TABLE]
    return {
        "facts": _facts(profile),
        "workloads": {figures.name: _workload(figures, profile) for figures in profile.workloads},
        # Numbers, which the page sorts by and then writes with their decimals.
        "operators": [
            [
                operator.stage,
                operator.layer,
                operator.kind,
                operator.name,
                operator.calls,
                operator.seconds / operator.calls * 1e3,
                operator.seconds / total * 100,
            ]
            for operator in slowest
        ],
        "comparison": {
            workload: {
                "summary": f"{workload}, compared with {first}: {summary(found, margins)}",
                "how": how_to_read(margins),
                "margin": percent(margins.same),
                "chart": charts.comparison(found, margins),
                "rows": [
                    [
                        words(figure.name),
                        figure.verdict,
                        milliseconds(figure.change.before),
                        milliseconds(figure.change.after),
                        signed(figure.change.ratio),
                        f"{signed(figure.change.low)} to {signed(figure.change.high)}",
                        signed(figure.smallest),
                    ]
                    for figure in found
                ],
            }
            for workload, found in (compared or {}).items()
        },
    }


def _facts(profile: Profile) -> dict[str, str]:
    machine, bundle, conditions = profile.machine, profile.bundle, profile.conditions
    facts = {
        "model": f"{bundle.model}, {bundle.precision} for {bundle.target} ({bundle.bundle_id[:12]})",
        "machine": ", ".join(filter(None, (machine.device, machine.cpu, f"{machine.cores} cores", machine.gpu))),
        "memory": f"{machine.memory_gb:g} GB",
        "system": machine.system,
        "kernels": machine.kernels or "none built",
        "measured": f"{profile.created}, {conditions.where}, {conditions.runs} runs after {conditions.warmups} warm-up",
    }
    unknown = next((figures.energy.unknown for figures in profile.workloads if figures.energy.unknown), None)
    return facts | ({"energy unknown": unknown} if unknown else {})


def _workload(figures: WorkloadFigures, profile: Profile) -> dict[str, Any]:
    return {
        "summary": _sentence(figures),
        "tiles": _tiles(figures),
        "run": _run(figures),
        "charts": charts.charts(figures, profile.ceilings),
        "roofline": _roofline(figures, profile.ceilings),
        "stages": [
            [words(name), *_milliseconds(stage.seconds), f"{stage.share:.1%}"] for name, stage in figures.stages.items()
        ],
    }


def _sentence(figures: WorkloadFigures) -> str:
    name, largest = max(figures.stages.items(), key=lambda stage: stage[1].share)
    first = f", its first token {_time(figures.ttft.median)}" if figures.ttft else ""
    return (
        f"{figures.name}: a request takes {_time(figures.end_to_end.median)}{first}; {words(name)} takes {largest.share:.0%} of "
        "the time."
    )


def _milliseconds(distribution: Distribution) -> list[str]:
    return [milliseconds(getattr(distribution, name)) for name in PERCENTILES]


def _tiles(figures: WorkloadFigures) -> list[tuple[str, str | None, str]]:
    """Return the tiles: name, figure (None: unknown), and a note or the reason why it is unknown."""
    name, largest = max(figures.stages.items(), key=lambda stage: stage[1].share)
    memory, energy = figures.memory, figures.energy
    return [
        _time_tile("First token", figures.ttft, "p95", "no token was written"),
        _time_tile("Per token", figures.tpot, f"{figures.tokens_per_second:,.1f} tokens/s; p95", "too few tokens"),
        _time_tile("End to end", figures.end_to_end, "p95", ""),
        ("Largest stage", words(name), f"{largest.share:.0%} of the time"),
        ("Peak memory", _bytes(memory["resident"]), f"{_bytes(memory.get('own', 0))} its own")
        if memory
        else ("Peak memory", None, "a server's is not known to its client"),
        ("Energy a request", f"{sum(energy.joules.values()):,.1f} J", energy.source or "")
        if energy.joules
        else ("Energy a request", None, "not reported by this machine"),
    ]


def _time_tile(name: str, found: Distribution | None, note: str, unknown: str) -> tuple[str, str | None, str]:
    return (name, _time(found.median), f"{note} {_time(found.p95)}") if found else (name, None, unknown)


def _run(figures: WorkloadFigures) -> dict[str, Any]:
    """Lay out the run with the median time as one bar: stages in chronological order, each with the tokens that it worked on."""
    run = sorted(figures.runs, key=lambda run: run.seconds)[len(figures.runs) // 2]
    drafts = f", {run.tokens_per_step:.2f} a step: drafts saved {run.saved_steps:,} steps" if run.saved_steps else ""
    tokens = {
        "vision": f"{run.image_tokens:,} image tokens",
        "prefill": f"{run.prompt_tokens - run.reused_tokens:,} tokens read",
        "decode": f"{run.generated_tokens:,} tokens written{drafts}",
    }
    return {
        "total": _time(run.seconds),
        "quarters": [_time(run.seconds * quarter / 4) if quarter else "0" for quarter in range(5)],
        "tokens": f"{run.prompt_tokens:,} prompt tokens ({run.image_tokens:,} of images, {run.reused_tokens:,} cached), then "
        f"{run.generated_tokens:,} written",
        "segments": [
            {
                "stage": name,
                "words": words(name),
                "share": run.stage_seconds(name) / run.seconds,
                "figure": f"{milliseconds(run.stage_seconds(name))} ms, {run.stage_seconds(name) / run.seconds:.1%}",
                "tokens": tokens.get(name, ""),
            }
            for name in ORDER
            if run.stage_seconds(name) > 0
        ],
    }


def _roofline(figures: WorkloadFigures, ceilings: Ceilings | None) -> list[tuple[str, str, str]]:
    """Return each stage, its name in words, and what it reaches."""
    if not ceilings:
        return []
    return [
        (
            point.stage,
            words(point.stage),
            f"{point.gbps / ceilings.read_gbps:.0%} of its bandwidth, {point.gops / ceilings.int8_gops:.0%} of its arithmetic",
        )
        for point in figures.roofline
    ]


def _bytes(size: float) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"


def _time(seconds: float) -> str:
    """Format seconds with their unit, to three digits or more."""
    return f"{seconds:,.1f} s" if seconds >= 10 else f"{milliseconds(seconds)} ms"
