"""Make Vega-Lite specifications: plain values, drawn in the browser as SVG whose marks a screen reader can name.

Colours are the page's own CSS variables, so that light and dark need no second drawing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Spec = dict[str, Any]

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # its name; nothing is fetched
ACCENT, WARNING, GOOD, INK, MUTED, LINE, BAND = (
    f"var(--{name})" for name in ("accent", "warning", "good", "ink", "muted", "line", "band")
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
    "axisX": {"labelSeparation": 8},
    "bar": {"color": ACCENT, "opacity": 1},
    "point": {"color": ACCENT, "filled": True, "size": 60, "opacity": 1},
    "text": {"color": INK, "fontSize": 12},
    "rule": {"color": MUTED},
}


def place(field: str, order: Sequence[str] | None = None) -> Spec:
    """Give each name a line, in that order or the one of the rows."""
    return {"field": field, "type": "nominal", "sort": list(order) if order else None, "title": None}


def new_spec(description: str, rows: list[dict[str, Any]], height: int) -> Spec:
    """Begin a chart of rows: as wide as its place, `height` pixels high; a screen reader reads the description."""
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


def quantity(name: str, title: str) -> Spec:
    """Place a number along an axis."""
    return {"field": name, "type": "quantitative", "title": title}


def tip(name: str, title: str | None = None, form: str | None = None) -> Spec:
    """Show a field in the tooltip, under its title and in its number format."""
    return {"field": name, "title": title or name} | ({"format": form} if form else {})
