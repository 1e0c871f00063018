"""Measure where one request's time goes: spans of work, in which each moment is counted once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from echovlm_edge.runtime.contracts.request import Span, Stage

# If spans of several threads overlap, the time counts for the first of these stages: model computation has precedence over the
# request's own thread, and that over waiting.
PRECEDENCE = (
    Stage.DECODE_IMAGES,
    Stage.PREPROCESS,
    Stage.VISION,
    Stage.PROJECTOR,
    Stage.PREFILL,
    Stage.DECODE,
    Stage.PROMPT,
    Stage.DETOKENIZE,
    Stage.DELIVER,
    Stage.QUEUE,
    Stage.WAIT,
)
_RANK = {stage: rank for rank, stage in enumerate(PRECEDENCE)}


class Clock:
    """The spans of one request: its own thread's, one after another without a gap, and those of threads that work for it."""

    def __init__(self) -> None:
        """Start the clock now."""
        self.spans: list[Span] = []
        self.started = self._lap = time.perf_counter()

    def came(self, moment: float) -> None:
        """Move the start back to when the request arrived, at `moment` by time.perf_counter; the time since counts as delivery.

        Call this before any other method.
        """
        self.started = self._lap = moment
        self.lap(Stage.DELIVER)

    def lap(self, stage: Stage) -> None:
        """Add a span of the request's own thread, from the previous lap until now."""
        now = time.perf_counter()
        self.add(stage, self._lap, now - self._lap)
        self._lap = now

    def add(self, stage: Stage, started: float, seconds: float) -> None:
        """Add a span of any thread, of `seconds` from `started` by time.perf_counter."""
        self.spans.append(Span(stage, started - self.started, seconds))

    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self.started

    def seconds(self) -> dict[Stage, float]:
        """Return the wall time by stage, in seconds, from the start until now. Adding up takes time too: it counts as delivery."""
        seconds = wall_time(self.spans, self.elapsed())
        self.lap(Stage.DELIVER)
        if self.spans:
            seconds[Stage.DELIVER] = seconds.get(Stage.DELIVER, 0.0) + self.spans[-1].seconds
        return seconds


class Untimed(Clock):
    """A clock that keeps no spans, for work whose times nobody reads."""

    def add(self, stage: Stage, started: float, seconds: float) -> None:
        """Ignore the span."""


def wall_time(spans: Sequence[Span], total: float) -> dict[Stage, float]:
    """Add up the seconds of `pieces` by stage. Their sum falls short of `total` by the moments that no span covers."""
    seconds: dict[Stage, float] = {}
    for stage, _, taken in pieces(spans, total):
        seconds[stage] = seconds.get(stage, 0.0) + taken
    return seconds


def pieces(spans: Sequence[Span], total: float) -> Iterator[tuple[Stage, float, float]]:
    """Split the moments from 0 to `total` seconds into pieces, in order: stage, start and seconds of each.

    A piece belongs to the first stage in `PRECEDENCE` that has a span over it; moments that no span covers are in no piece.
    """
    edges = []
    for span in spans:
        start, end = max(span.start, 0.0), min(span.start + span.seconds, total)
        if end > start:
            rank = _RANK[span.stage]
            edges += [(start, 1, rank), (end, -1, rank)]
    edges.sort()
    covering, open_stages = [0] * len(PRECEDENCE), 0
    before = 0.0
    for moment, change, rank in edges:
        if open_stages and moment > before:  # one bit per stage; the lowest set bit is the first stage
            yield PRECEDENCE[(open_stages & -open_stages).bit_length() - 1], before, moment - before
        before = moment
        covering[rank] += change
        open_stages = open_stages | 1 << rank if covering[rank] else open_stages & ~(1 << rank)
