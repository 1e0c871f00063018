"""Make the page of an acceptance: one file that works without a network, in light and dark, for a hospital's engineer."""

from __future__ import annotations

from collections.abc import Sequence

from echovlm_edge.runtime.doctor.acceptance.schema import Acceptance, Sample, State
from echovlm_edge.runtime.profiling.drawing.rendering import render
from echovlm_edge.runtime.profiling.drawing.specifications import ACCENT, Spec, new_spec, quantity, tip

PACKAGE = "echovlm_edge.runtime.doctor.acceptance.drawing"
QUICK = "Measured with few and short runs (--quick): the figures mean little."
CHARTS = {
    "tokens": ("tokens_per_second", "tokens a second"),
    "temperature": ("celsius", "°C, the hottest sensor"),
    "power": ("watts", "watts"),
    "clock": ("mhz", "MHz"),
}
TILES = {
    "load.tokens_per_second": ("Tokens a second under load", "{:,.1f}", "not measured"),
    "load.last_third_of_first": ("Speed at the end, compared with the start", "{:.0%}", "not measured"),
    "load.celsius_most": ("Hottest under load", "{:.0f} °C", "no sensor reports it"),
    "load.watts": ("Power under load", "{:,.1f} W", "no counter reports it"),
    "load.joules_a_report": ("Energy a report under load", "{:,.1f} J", "no counter reports it"),
}


def acceptance_page(accepted: Acceptance, library: str) -> str:
    """Make the page; `library` is the plotting library, see `plotting_library`."""
    limited = sum(1 for one in accepted.judged if one.limit)
    data = {
        "passed": accepted.passed,
        "verdict": _verdict(accepted),
        "about": _about(accepted),
        "summary": _summary(accepted),
        "failures": accepted.failures,
        "skipped": [f"{step.name}: {step.reason}" for step in accepted.steps if step.state is State.SKIPPED]
        + [
            f"{step.name}, {check.what}: {check.detail}"
            for step in accepted.steps
            for check in step.outcome.checks
            if check.state is State.SKIPPED and step.state is not State.SKIPPED
        ],
        "tiles": _tiles(accepted),
        "steps": [[step.name, step.state, step.what, f"{step.seconds:,.1f}"] for step in accepted.steps],
        "figures": [
            [
                one.name,
                "not measured" if one.value is None else f"{one.value:,.4g}",
                one.limit or "none",
                one.state if one.limit else "not judged",
            ]
            for one in sorted(accepted.judged, key=lambda one: not one.limit)
        ],
        "how": f"{limited} of {len(accepted.judged)} figures have a limit. Names end with their unit; those of workloads are medians.",
        "checks": [
            [step.name, check.what, check.state, check.detail]
            for step in accepted.steps
            for check in step.outcome.checks
        ],
        "facts": _facts(accepted),
        "charts": charts([sample for step in accepted.steps for sample in step.outcome.samples]),
    }
    return render("acceptance.html.jinja", f"Acceptance of {accepted.bundle.model}", library, data, [PACKAGE])


def _verdict(accepted: Acceptance) -> str:
    verdict = "Passed" if accepted.passed else "Not passed"
    return f"{verdict}, as a trial run" if accepted.quick else verdict


def _about(accepted: Acceptance) -> str:
    machine, when = accepted.machine, f"{accepted.created[:16].replace('T', ' ')} UTC"
    return ", ".join(filter(None, (accepted.name, machine.device or machine.cpu, when)))


def _summary(accepted: Acceptance) -> str:
    count = {state: sum(step.state is state for step in accepted.steps) for state in State}
    quick = f" {QUICK}" if accepted.quick else ""
    return (
        f"{count[State.PASSED]} of {len(accepted.steps)} steps passed, {count[State.FAILED]} failed, "
        f"{count[State.SKIPPED]} skipped.{quick}"
    )


def _tiles(accepted: Acceptance) -> list[tuple[str, str | None, str]]:
    found = {one.name: one for one in accepted.judged}
    tiles: list[tuple[str, str | None, str]] = []
    for name, (title, form, unknown) in TILES.items():
        one = found.get(name)
        value = one.value if one else None
        limit = f"limit: {one.limit}" if one and one.limit else "no limit"
        tiles.append((title, None if value is None else form.format(value), unknown if value is None else limit))
    return tiles


def _facts(accepted: Acceptance) -> dict[str, str]:
    machine, bundle = accepted.machine, accepted.bundle
    named = {"name": accepted.name} if accepted.name else {}
    return named | {
        "model": f"{bundle.model}, {bundle.precision} for {bundle.target} ({bundle.bundle_id})",
        "machine": ", ".join(filter(None, (machine.device, machine.cpu, f"{machine.cores} cores", machine.gpu))),
        "memory": f"{machine.memory_gb:g} GB",
        "system": machine.system,
        "packages": ", ".join(f"{name} {version}" for name, version in machine.toolchain.items()),
        "ended": accepted.created,
    }


def charts(samples: Sequence[Sample]) -> dict[str, Spec]:
    """Draw each series over the minutes of load; those that the machine does not report are left out."""
    found = {}
    for name, (field, title) in CHARTS.items():
        rows = [
            {"minutes": sample.seconds / 60, field: value}
            for sample in samples
            if (value := getattr(sample, field)) is not None
        ]
        if rows:
            spec = new_spec(f"{title} over the minutes of load.", rows, 220)
            spec["mark"] = {"type": "line", "point": {"size": 20}, "color": ACCENT}
            spec["encoding"] = {
                "x": quantity("minutes", "minutes"),
                "y": quantity(field, title),
                "tooltip": [tip("minutes", None, ",.1f"), tip(field, title, ",.1f")],
            }
            found[name] = spec
    return found
