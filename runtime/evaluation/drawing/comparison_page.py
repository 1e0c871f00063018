"""Make the page of a comparison: one file that works without a network, in light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from echovlm_edge.runtime.evaluation.comparison import Comparison
from echovlm_edge.runtime.evaluation.drawing import charts
from echovlm_edge.runtime.evaluation.drawing.evaluation_page import PACKAGE
from echovlm_edge.runtime.evaluation.drawing.thumbnails import thumbnails
from echovlm_edge.runtime.evaluation.figures import Difference, Pair
from echovlm_edge.runtime.evaluation.scoring.metric import Metric
from echovlm_edge.runtime.evaluation.table import difference_cells
from echovlm_edge.runtime.profiling.drawing.rendering import plotting_library, render

SHOWN = 6  # rows for each metric whose figure changed most


def comparison_page(found: Comparison, images: Path | None = None) -> str:
    """Make the page.

    Args:
        found: what it shows.
        images: the folder of the rows' pictures; without it the page has none.

    Raises:
        NotPossibleHere: the plotting library is not installed.
    """
    library = plotting_library("leave --html out")
    metrics = [one.metric for one in found.all_rows if one.metric.headline] or [one.metric for one in found.all_rows]
    data = {
        "summary": found.summary,
        "groups": {
            group: {"chart": charts.changes(ones), "rows": [_cells(one) for one in ones]}
            for group, ones in found.by_group.items()
        },
        "metrics": {
            metric.title: [_case(pair, metric, found, images) for pair in _changed_most(metric, found.pairs)]
            for metric in metrics
        },
        "notes": list(found.notes),
    }
    return render(
        "comparison.html.jinja", f"{found.before} and {found.after}: evaluations compared", library, data, [PACKAGE]
    )


def _cells(one: Difference) -> list[str]:
    return [one.metric.title, one.verdict, *difference_cells(one)]


def _score(metric: Metric, statistics: Sequence[float]) -> float:
    return float(metric.value(np.array(statistics)))


def _changed_most(metric: Metric, pairs: Sequence[Pair]) -> list[Pair]:
    both = [pair for pair in pairs if all(metric.key in row.statistics for row in pair)]

    def change(pair: Pair) -> float:
        before, after = (_score(metric, row.statistics[metric.key]) for row in pair)
        return float(np.nan_to_num(abs(after - before)))

    changed = [pair for pair in both if change(pair) > 0]
    return sorted(changed, key=lambda pair: (-change(pair), pair[1].number))[:SHOWN]


def _case(pair: Pair, metric: Metric, found: Comparison, images: Path | None) -> dict[str, Any]:
    before, after = pair
    scores = [_score(metric, row.statistics[metric.key]) for row in pair]
    return {
        "name": after.name,
        "score": f"{scores[0]:.1f} to {scores[1]:.1f}",
        "about": f"{after.task.value}, {after.region}, {after.language}",
        "question": after.question,
        "texts": [
            ["Reference", after.reference],
            [found.before, before.answer or "(nothing)"],
            [found.after, after.answer or "(nothing)"],
        ],
        **thumbnails(after.pictures, images),
    }
