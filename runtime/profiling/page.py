"""One self-contained HTML page of one or more profiles: works from a file, without a network, in light and dark."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader

from echovlm_edge.runtime.errors import NotPossibleHere
from echovlm_edge.runtime.profiling import charts
from echovlm_edge.runtime.profiling.compare import DEFAULT, FigureChange, Margins, compare
from echovlm_edge.runtime.profiling.schema import Profile, WorkloadFigures

LARGEST_TABLE = 2000  # operators


def html_page(profiles: Mapping[str, Profile], margins: Margins = DEFAULT) -> str:
    """The page of profiles by label; each but the first is compared with the first.

    Raises:
        NotPossibleHere: the plotting library is not installed.
        InvalidInput: two of them cannot be compared.
    """
    library = _library()
    first = next(iter(profiles.values()))
    told = {
        label: _profile(profile, None if profile is first else compare(first, profile, margins))
        for label, profile in profiles.items()
    }
    environment = Environment(
        loader=PackageLoader("echovlm_edge.runtime.profiling", "."), autoescape=True, keep_trailing_newline=True
    )
    return environment.get_template("page.html.jinja").render(
        title=f"{first.bundle.model}: profile",
        # Inside of a script element nothing may look like its end.
        library=library.replace("</script", "<\\/script"),
        data=json.dumps({"first": next(iter(profiles)), "profiles": told}, ensure_ascii=False).replace("<", "\\u003c"),
    )


def _library() -> str:
    try:
        import vl_convert
    except ImportError:
        raise NotPossibleHere(
            "The page needs a plotting library that is not installed: pip install 'echovlm-edge[page]', or write --json here "
            "and make the page elsewhere, with echovlm-profile page."
        ) from None
    return str(vl_convert.javascript_bundle())  # type: ignore[call-arg] # its types leave the default out


def _profile(profile: Profile, compared: Mapping[str, tuple[FigureChange, ...]] | None) -> dict[str, Any]:
    machine, bundle, conditions = profile.machine, profile.bundle, profile.conditions
    facts = {
        "model": f"{bundle.model}, {bundle.precision} for {bundle.target} ({bundle.bundle_id[:12]})",
        "machine": ", ".join(filter(None, (machine.device, machine.cpu, f"{machine.cores} cores", machine.gpu))),
        "memory": f"{machine.memory_gb:g} GB",
        "system": machine.system,
        "kernels": machine.kernels or "none built",
        "measured": f"{profile.created}, {conditions.where}, {conditions.runs} runs after {conditions.warmups} warm-up",
    }
    total = sum(operator.seconds for operator in profile.operators) or 1.0
    slowest = sorted(profile.operators, key=lambda operator: -operator.seconds)[:LARGEST_TABLE]
    return {
        "facts": facts,
        "workloads": {
            figures.name: {
                "tiles": _tiles(figures),
                "charts": charts.charts(figures, profile.ceilings),
                "stages": [
                    [name.replace("_", " "), *_milliseconds(stage.seconds), f"{stage.share:.1%}"]
                    for name, stage in figures.stages.items()
                ],
            }
            for figures in profile.workloads
        },
        "operators": [
            [
                operator.part,
                operator.phase,
                operator.layer,
                operator.kind,
                operator.name,
                operator.calls,
                f"{operator.seconds / operator.calls * 1e3:.3f}",
                f"{operator.seconds / total:.2%}",
            ]
            for operator in slowest
        ],
        "comparison": {
            workload: {
                "chart": charts.comparison(found),
                "rows": [
                    [
                        figure.name.replace("_", " "),
                        f"{figure.change.before * 1e3:,.2f}",
                        f"{figure.change.after * 1e3:,.2f}",
                        f"{figure.change.ratio:+.1%}",
                        f"{figure.change.low:+.1%} to {figure.change.high:+.1%}",
                        figure.verdict,
                    ]
                    for figure in found
                ],
            }
            for workload, found in (compared or {}).items()
        },
    }


def _milliseconds(distribution: Any) -> list[str]:
    return [f"{getattr(distribution, name) * 1e3:,.2f}" for name in ("median", "p90", "p95", "p99", "max")]


def _tiles(figures: WorkloadFigures) -> list[tuple[str, str, str]]:
    """Name, figure, and what is to be known beside it."""
    tiles = []
    if figures.ttft:
        tiles.append(("First token", _time(figures.ttft.median), f"95 % within {_time(figures.ttft.p95)}"))
    tiles.append(("Whole report", _time(figures.end_to_end.median), f"95 % within {_time(figures.end_to_end.p95)}"))
    if figures.tpot:
        tiles.append(
            ("Each token", _time(figures.tpot.median), f"{figures.tokens_per_second:.1f} tokens a second in all")
        )
    largest = max(figures.stages.items(), key=lambda stage: stage[1].share)
    tiles.append(("Eats the time", largest[0].replace("_", " "), f"{largest[1].share:.0%} of it"))
    if figures.memory:
        own = figures.memory.get("own", 0) / 1e9
        tiles.append(("Memory at most", f"{figures.memory['resident'] / 1e9:.2f} GB", f"of which {own:.2f} GB its own"))
    energy = figures.energy
    tiles.append(
        ("Energy a request", f"{sum(energy.joules.values()):.1f} J", energy.source or "")
        if energy.joules
        else ("Energy a request", "unknown", "this machine does not tell")
    )
    least = min(run.accounted for run in figures.runs)
    tiles.append(("Accounted for", f"{least:.1%}", "or more of every run, by the stages"))
    return tiles


def _time(seconds: float) -> str:
    if seconds < 0.01:
        return f"{seconds * 1e3:.2f} ms"
    return f"{seconds * 1e3:,.0f} ms" if seconds < 10 else f"{seconds:,.1f} s"
