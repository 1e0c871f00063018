"""Make the profile's charts as Vega-Lite specifications."""

from __future__ import annotations

from collections.abc import Sequence

from echovlm_edge.runtime.contracts.stages import ORDER, words
from echovlm_edge.runtime.profiling.comparison.compare import FigureChange, Margins
from echovlm_edge.runtime.profiling.drawing.specifications import (
    ACCENT,
    BAND,
    GOOD,
    INK,
    MUTED,
    WARNING,
    Spec,
    new_spec,
    place,
    quantity,
    tip,
)
from echovlm_edge.runtime.profiling.schema import Ceilings, WorkloadFigures

STAGE_COLOURS: Spec = {
    "field": "name",
    "type": "nominal",
    "scale": {"domain": list(ORDER), "range": [f"var(--stage-{name})" for name in ORDER]},
    "legend": None,  # the page names them
}
TIMELINE_MARKS = 1500
# Colour and shape of each verdict: nobody needs the colours to tell them apart.
VERDICTS = {
    "slower": (WARNING, "triangle-right"),
    "faster": (ACCENT, "triangle-left"),
    "the same": (GOOD, "circle"),
    "cannot tell": (MUTED, "diamond"),
}


def charts(figures: WorkloadFigures, ceilings: Ceilings | None) -> dict[str, Spec]:
    """Make a workload's charts, by their place in the page; those without data are left out."""
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
    """Draw a bar for each stage's median, a tick at its 95th percentile."""
    rows = [
        {"stage": words(name), "name": name, "median": stage.seconds.median * 1e3, "p95": stage.seconds.p95 * 1e3}
        for name, stage in figures.stages.items()
    ]
    spec = new_spec("Median milliseconds of each stage, and its 95th percentile.", rows, 32 * len(rows))
    tooltip = [tip("stage"), tip("median", "median, ms", ",.2f"), tip("p95", "95th percentile, ms", ",.2f")]
    spec["encoding"] = {"y": place("stage"), "tooltip": tooltip}
    spec["layer"] = [
        {"mark": "bar", "encoding": {"x": quantity("median", "milliseconds"), "color": STAGE_COLOURS}},
        {"mark": {"type": "tick", "color": INK, "thickness": 2}, "encoding": {"x": quantity("p95", "milliseconds")}},
    ]
    return spec


def waterfall(figures: WorkloadFigures) -> Spec:
    """Draw when each stage worked in the run with the median time."""
    rows = [
        {
            "stage": words(span.stage),
            "name": span.stage,
            "start": span.start * 1e3,
            "end": (span.start + span.seconds) * 1e3,
        }
        for span in sorted(figures.timeline, key=lambda span: -span.seconds)[:TIMELINE_MARKS]
    ]
    used = [words(name) for name in ORDER if any(row["name"] == name for row in rows)]
    spec = new_spec("When each stage worked, in the run with the median time.", rows, 24 * len(used))
    spec["mark"] = {"type": "bar", "minBandSize": 1}
    spec["encoding"] = {
        "y": place("stage", used),
        "x": quantity("start", "milliseconds since the request"),
        "x2": {"field": "end"},
        "color": STAGE_COLOURS,
        "tooltip": [tip("stage"), tip("start", "from, ms", ",.2f"), tip("end", "to, ms", ",.2f")],
    }
    return spec


def histogram(figures: WorkloadFigures) -> Spec:
    """Draw how long the next token takes, over all runs."""
    rows = [{"gap": gap * 1e3} for run in figures.runs for gap in run.gaps]
    spec = new_spec("How often a token took how long after the one before, over all runs.", rows, 220)
    spec["mark"] = "bar"
    spec["encoding"] = {
        "x": {"field": "gap", "bin": {"maxbins": 40}, "title": "milliseconds between tokens"},
        "y": {"aggregate": "count", "title": "tokens"},
    }
    return spec


def tokens(figures: WorkloadFigures) -> Spec:
    """Draw the time of each token in the run with the median time, which shows whether tokens get slower as the text grows."""
    ordered = sorted(figures.runs, key=lambda run: run.seconds)
    rows = [{"token": index, "gap": gap * 1e3} for index, gap in enumerate(ordered[len(ordered) // 2].gaps, 2)]
    spec = new_spec("Milliseconds that each token took, in the run with the median time.", rows, 220)
    spec["mark"] = {"type": "point", "size": 20}
    spec["encoding"] = {
        "x": {"field": "token", "type": "quantitative", "title": "token"},
        "y": {"field": "gap", "type": "quantitative", "title": "milliseconds"},
        "tooltip": [tip("token"), tip("gap", "milliseconds", ",.2f")],
    }
    return spec


def roofline(figures: WorkloadFigures, ceilings: Ceilings) -> Spec:
    """Draw each stage under what this machine reads and multiplies at most, both axes logarithmic."""
    points = [
        {
            "stage": words(point.stage),
            "name": point.stage,
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
        tip("stage"),
        tip("intensity", "operations a byte", ",.1f"),
        tip("gops", "10⁹ operations/s", ",.1f"),
        tip("reached", "of the roof", ".0%"),
    ]
    spec = new_spec("Each stage's rate compared with the most that this machine reads and multiplies.", points, 300)
    spec["layer"] = [
        {
            "data": {"values": roof},
            "mark": {"type": "line", "color": MUTED, "strokeDash": [4, 3]},
            "encoding": {"x": x, "y": y},
        },
        # Named by the page's key: labels at points that lie close together would cover each other.
        {
            "mark": {"type": "point", "size": 110},
            "encoding": {"x": x, "y": y, "color": STAGE_COLOURS, "tooltip": tooltip},
        },
    ]
    return spec


def comparison(found: Sequence[FigureChange], margins: Margins) -> Spec:
    """Draw the change of each figure with its interval, over the margin within which a figure is the same."""
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
    spec = new_spec("Change of each figure with its 95% interval; right of zero is slower.", rows, 26 * len(rows))
    verdict: Spec = {"field": "verdict", "type": "nominal", "legend": None}  # the page names them
    colour = verdict | {"scale": {"domain": list(VERDICTS), "range": [colour for colour, _ in VERDICTS.values()]}}
    shape = verdict | {"scale": {"domain": list(VERDICTS), "range": [shape for _, shape in VERDICTS.values()]}}
    # The length of an interval beyond a doubling says nothing more, and would hide the others.
    low = max(min(-margins.same, *(figure.change.low for figure in found)), -1)
    high = min(max(margins.same, *(figure.change.high for figure in found)), 1)
    x = {"type": "quantitative", "scale": {"domain": [low, high], "clamp": True, "nice": True}}
    axis = {"title": "change", "axis": {"format": "+.0%", "tickCount": 6}}  # few enough for a phone, zero among them
    tooltip = [
        tip("figure"),
        tip("change", "change", "+.1%"),
        tip("low", "from", "+.1%"),
        tip("high", "to", "+.1%"),
        tip("verdict"),
    ]
    spec["layer"] = [
        {
            "data": {"values": [{"low": -margins.same, "high": margins.same}]},
            "mark": {"type": "rect", "color": BAND},
            "encoding": {"x": x | {"field": "low"} | axis, "x2": {"field": "high"}},
        },
        {
            "data": {"values": [{"zero": 0}]},
            "mark": {"type": "rule", "strokeDash": [3, 3]},
            "encoding": {"x": x | {"field": "zero"} | axis},
        },
        {
            "mark": {"type": "rule", "strokeWidth": 3},
            "encoding": {
                "y": place("figure"),
                "x": x | {"field": "low"} | axis,
                "x2": {"field": "high"},
                "color": colour,
                "tooltip": tooltip,
            },
        },
        {
            "mark": {"type": "point", "size": 90},
            "encoding": {
                "y": place("figure"),
                "x": x | {"field": "change"} | axis,
                "color": colour,
                "shape": shape,
                "tooltip": tooltip,
            },
        },
    ]
    return spec
