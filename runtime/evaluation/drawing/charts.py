"""Make the charts of an evaluation and of a comparison as Vega-Lite specifications."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from echovlm_edge.runtime.evaluation.figures import Difference
from echovlm_edge.runtime.evaluation.schema import Figure
from echovlm_edge.runtime.profiling.drawing.specifications import (
    ACCENT,
    GOOD,
    MUTED,
    WARNING,
    Spec,
    new_spec,
    place,
    quantity,
    tip,
)

BINS = 20
LINE_HEIGHT = 26  # pixels
# Colour and shape of each verdict: nobody needs the colours to tell them apart.
VERDICTS = {
    "worse": (WARNING, "triangle-left"),
    "better": (GOOD, "triangle-right"),
    "the same": (ACCENT, "circle"),
    "cannot tell": (MUTED, "diamond"),
}


def by_group(title: str, figures: Sequence[Figure]) -> Spec:
    """Draw one metric of each group, with its interval."""
    rows = [
        {
            "group": figure.group,
            "figure": figure.value,
            "low": figure.value if figure.low is None else figure.low,
            "high": figure.value if figure.high is None else figure.high,
            "rows": figure.rows,
        }
        for figure in figures
    ]
    spec = new_spec(f"{title} of each group, with its 95 % interval.", rows, LINE_HEIGHT * len(rows))
    tooltip = [
        tip("group"),
        tip("figure", title, ".2f"),
        tip("low", "from", ".2f"),
        tip("high", "to", ".2f"),
        tip("rows", None, ","),
    ]
    spec["encoding"] = {"y": place("group"), "tooltip": tooltip}
    low = quantity("low", title) | {"scale": {"zero": False}}
    spec["layer"] = [
        {"mark": {"type": "rule", "strokeWidth": 3}, "encoding": {"x": low, "x2": {"field": "high"}}},
        {
            "mark": {"type": "point", "size": 90},
            "encoding": {"x": quantity("figure", title) | {"scale": {"zero": False}}},
        },
    ]
    return spec


def histogram(title: str, scores: Sequence[float]) -> Spec:
    """Draw how many rows have which score, 0 to 100 (BERTScore rescaled can be below)."""
    least = min(0.0, *scores)
    counts, edges = np.histogram(scores, BINS, (least, 100.0))
    rows = [
        {"from": float(low), "to": float(high), "rows": int(count)}
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]
    spec = new_spec(f"How many rows have which {title}.", rows, 220)
    spec["mark"] = {"type": "bar", "binSpacing": 1}
    spec["encoding"] = {
        "x": {"field": "from", "type": "quantitative", "bin": "binned", "title": title},
        "x2": {"field": "to"},
        "y": {"field": "rows", "type": "quantitative", "title": "rows"},
        "tooltip": [tip("from", "from", ".0f"), tip("to", "to", ".0f"), tip("rows", None, ",")],
    }
    return spec


def changes(found: Sequence[Difference]) -> Spec:
    """Draw the change of each figure with its interval, and zero."""
    rows = [
        {
            "metric": one.metric.title,
            "change": one.change,
            "low": one.low,
            "high": one.high,
            "verdict": one.verdict,
        }
        for one in found
    ]
    spec = new_spec("Change of each figure, with its 95 % interval.", rows, LINE_HEIGHT * len(rows))
    verdict: Spec = {"field": "verdict", "type": "nominal", "legend": None}  # the page names them
    colour = verdict | {"scale": {"domain": list(VERDICTS), "range": [colour for colour, _ in VERDICTS.values()]}}
    shape = verdict | {"scale": {"domain": list(VERDICTS), "range": [shape for _, shape in VERDICTS.values()]}}
    tooltip = [
        tip("metric"),
        tip("change", None, "+.2f"),
        tip("low", "from", "+.2f"),
        tip("high", "to", "+.2f"),
        tip("verdict"),
    ]
    marked = {"y": place("metric"), "color": colour, "tooltip": tooltip}
    axis = quantity("low", "change")
    spec["layer"] = [
        {
            "data": {"values": [{"zero": 0}]},
            "mark": {"type": "rule", "strokeDash": [3, 3]},
            "encoding": {"x": quantity("zero", "change")},
        },
        {"mark": {"type": "rule", "strokeWidth": 3}, "encoding": {**marked, "x": axis, "x2": {"field": "high"}}},
        {
            "mark": {"type": "point", "size": 90},
            "encoding": {**marked, "x": quantity("change", "change"), "shape": shape},
        },
    ]
    return spec
