"""The page's charts as Vega-Lite specifications: plain values, drawn in the browser as SVG whose marks a screen reader can name.

Colours are the page's own CSS variables, so that light and dark need no second drawing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from echovlm_edge.runtime.profiling.compare import FigureChange
from echovlm_edge.runtime.profiling.schema import Ceilings, WorkloadFigures
from echovlm_edge.runtime.profiling.stages import ORDER, words

Spec = dict[str, Any]

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # its name; nothing is fetched
ACCENT, SECOND, WARNING, INK, MUTED, LINE = (
    f"var(--{name})" for name in ("accent", "second", "warning", "ink", "muted", "line")
)
CONFIG: Spec = {
    "background": None,
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": MUTED,
        "titleColor": MUTED,
        "titleFontWeight": "normal",
        "gridColor": LINE,
        "domainColor": LINE,
        "tickColor": LINE,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "labelLimit": 260,
    },
    "legend": {"labelColor": MUTED, "titleColor": MUTED, "labelFontSize": 12, "orient": "top"},
    "bar": {"color": ACCENT, "opacity": 1},
    "point": {"color": ACCENT, "filled": True, "size": 60, "opacity": 1},
    "text": {"color": INK, "fontSize": 12},
    "rule": {"color": MUTED},
}
TIMELINE_MARKS = 1500


def charts(figures: WorkloadFigures, ceilings: Ceilings | None) -> dict[str, Spec]:
    """A workload's charts by the place they have in the page; those without data are left out."""
    found = {"stages": stages(figures)}
    if figures.timeline:
        found["waterfall"] = waterfall(figures)
    if figures.gaps:
        found["histogram"] = histogram(figures)
        found["tokens"] = tokens(figures)
    if figures.roofline and ceilings:
        found["roofline"] = roofline(figures, ceilings)
    return found


def stages(figures: WorkloadFigures) -> Spec:
    """A bar for each stage's median, a tick at its 95th percentile."""
    rows = [
        {"stage": words(name), "median": stage.seconds.median * 1e3, "p95": stage.seconds.p95 * 1e3}
        for name, stage in figures.stages.items()
    ]
    spec = _spec("Median milliseconds of each stage, and its 95th percentile.", rows, 24 * len(rows))
    place = {"field": "stage", "type": "nominal", "sort": None, "title": None}
    tooltip = [_tip("stage"), _tip("median", "median, ms", ",.2f"), _tip("p95", "95th percentile, ms", ",.2f")]
    spec["encoding"] = {"y": place, "tooltip": tooltip}
    spec["layer"] = [
        {"mark": "bar", "encoding": {"x": _x("median", "milliseconds")}},
        {
            "mark": {"type": "tick", "color": SECOND, "thickness": 2},
            "encoding": {"x": _x("p95", "milliseconds")},
        },
    ]
    return spec


def waterfall(figures: WorkloadFigures) -> Spec:
    """When each stage worked in the run with the median time."""
    rows = [
        {"stage": words(span.stage), "start": span.start * 1e3, "end": (span.start + span.seconds) * 1e3}
        for span in sorted(figures.timeline, key=lambda span: -span.seconds)[:TIMELINE_MARKS]
    ]
    order = [words(name) for name in ORDER]
    used = [name for name in order if any(row["stage"] == name for row in rows)]
    spec = _spec("When each stage worked, in the run with the median time.", rows, 24 * len(used))
    spec["mark"] = {"type": "bar", "minBandSize": 1}
    spec["encoding"] = {
        "y": {"field": "stage", "type": "nominal", "sort": used, "title": None},
        "x": _x("start", "milliseconds since the request"),
        "x2": {"field": "end"},
        "tooltip": [_tip("stage"), _tip("start", "from, ms", ",.2f"), _tip("end", "to, ms", ",.2f")],
    }
    return spec


def histogram(figures: WorkloadFigures) -> Spec:
    """How long the next token takes, over all runs."""
    rows = [{"gap": gap * 1e3} for run in figures.runs for gap in run.gaps]
    spec = _spec("How often a token took how long after the one before, over all runs.", rows, 220)
    spec["mark"] = "bar"
    spec["encoding"] = {
        "x": {"field": "gap", "bin": {"maxbins": 40}, "title": "milliseconds between tokens"},
        "y": {"aggregate": "count", "title": "tokens"},
    }
    return spec


def tokens(figures: WorkloadFigures) -> Spec:
    """Each token of the run with the median time: does it get slower as the text grows?"""
    ordered = sorted(figures.runs, key=lambda run: run.seconds)
    rows = [{"token": index, "gap": gap * 1e3} for index, gap in enumerate(ordered[len(ordered) // 2].gaps, 2)]
    spec = _spec("Milliseconds that each token took, in the run with the median time.", rows, 220)
    spec["mark"] = {"type": "point", "size": 20}
    spec["encoding"] = {
        "x": {"field": "token", "type": "quantitative", "title": "token"},
        "y": {"field": "gap", "type": "quantitative", "title": "milliseconds"},
        "tooltip": [_tip("token"), _tip("gap", "milliseconds", ",.2f")],
    }
    return spec


def roofline(figures: WorkloadFigures, ceilings: Ceilings) -> Spec:
    """Each stage under what this machine reads and multiplies at most, both axes logarithmic."""
    points = [
        {
            "stage": words(point.stage),
            "intensity": point.operations / point.read_bytes,
            "gops": point.gops,
            "reached": point.gops / min(ceilings.int8_gops, ceilings.read_gbps * point.operations / point.read_bytes),
        }
        for point in figures.roofline
    ]
    ridge = ceilings.int8_gops / ceilings.read_gbps
    intensities = [*(point.operations / point.read_bytes for point in figures.roofline), ridge]
    ends = (min(intensities) / 2, ridge, max(intensities) * 2)
    roof = [{"intensity": x, "gops": min(ceilings.int8_gops, ceilings.read_gbps * x)} for x in ends]
    x = {
        "field": "intensity",
        "type": "quantitative",
        "scale": {"type": "log"},
        "title": "operations for each byte read",
    }
    y = {"field": "gops", "type": "quantitative", "scale": {"type": "log"}, "title": "10⁹ operations a second"}
    tooltip = [
        _tip("stage"),
        _tip("intensity", "operations a byte", ",.1f"),
        _tip("gops", "10⁹ operations/s", ",.1f"),
        _tip("reached", "of the roof", ".0%"),
    ]
    spec = _spec("Each stage's rate beside the most that this machine reads and multiplies.", points, 300)
    spec["layer"] = [
        {
            "data": {"values": roof},
            "mark": {"type": "line", "color": MUTED, "strokeDash": [4, 3]},
            "encoding": {"x": x, "y": y},
        },
        {"mark": "point", "encoding": {"x": x, "y": y, "tooltip": tooltip}},
        {"mark": {"type": "text", "dy": -12}, "encoding": {"x": x, "y": y, "text": {"field": "stage"}}},
    ]
    return spec


def comparison(found: Sequence[FigureChange]) -> Spec:
    """The change of each figure with its interval; what changed for certain is coloured."""
    rows = [
        {
            "figure": words(figure.name),
            "change": figure.change.ratio,
            "low": figure.change.low,
            "high": figure.change.high,
            "verdict": figure.verdict,
        }
        for figure in found
    ]
    spec = _spec("Change of each figure with its 95 % interval; right of zero is slower.", rows, 26 * len(rows))
    place = {"field": "figure", "type": "nominal", "sort": None, "title": None}
    colour = {
        "field": "verdict",
        "type": "nominal",
        "scale": {"domain": ["slower", "the same", "faster"], "range": [WARNING, MUTED, ACCENT]},
        "title": None,
    }
    # An interval that ends beyond a doubling tells no more by its length, and would hide the others.
    scale = {
        "domain": [max(min(0.0, *(r.change.low for r in found)), -1), min(max(0.0, *(r.change.high for r in found)), 1)]
    }
    x = {"type": "quantitative", "scale": scale | {"clamp": True, "nice": True}}
    tooltip = [
        _tip("figure"),
        _tip("change", "change", "+.1%"),
        _tip("low", "from", "+.1%"),
        _tip("high", "to", "+.1%"),
        _tip("verdict"),
    ]
    spec["encoding"] = {"y": place, "color": colour, "tooltip": tooltip}
    spec["layer"] = [
        {
            "mark": {"type": "rule", "strokeWidth": 3},
            "encoding": {
                "x": x | {"field": "low", "title": "change", "axis": {"format": "+.0%"}},
                "x2": {"field": "high"},
            },
        },
        {"mark": {"type": "point", "size": 80}, "encoding": {"x": x | {"field": "change"}}},
        {
            "data": {"values": [{"zero": 0}]},
            "mark": {"type": "rule", "strokeDash": [3, 3]},
            "encoding": {"x": x | {"field": "zero"}, "y": None, "color": None, "tooltip": None},
        },
    ]
    return spec


def _spec(description: str, rows: list[dict[str, Any]], height: int) -> Spec:
    return {
        "$schema": SCHEMA,
        "description": description,
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"values": [{key: _rounded(value) for key, value in row.items()} for row in rows]},
        "config": CONFIG,
    }


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _x(name: str, title: str) -> Spec:
    return {"field": name, "type": "quantitative", "title": title}


def _tip(name: str, title: str | None = None, form: str | None = None) -> Spec:
    return {"field": name, "title": title or name} | ({"format": form} if form else {})
