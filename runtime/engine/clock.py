"""Where one request's time goes: spans of work, and each moment of it counted once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from echovlm_edge.runtime.contracts.request import Span, Stage

# Where spans of several threads overlap, the moment is the first one's: what the model computes, then what this request's own
# thread does beside it, then what it waits for.
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
    """Keeps the spans of one request: its own thread's, one after another without a gap, and those of others that work for it."""

    def __init__(self) -> None:
        """Starts now."""
        self.spans: list[Span] = []
        self.started = self._lap = time.perf_counter()

    def came(self, moment: float) -> None:
        """The request came earlier, at `moment` by time.perf_counter: since then the connection had it. To be called first."""
        self.started = self._lap = moment
        self.lap(Stage.DELIVER)

    def lap(self, stage: Stage) -> None:
        """What the request's own thread did since the lap before."""
        now = time.perf_counter()
        self.add(stage, self._lap, now - self._lap)
        self._lap = now

    def add(self, stage: Stage, started: float, seconds: float) -> None:
        """A span of any thread, from `started` by time.perf_counter."""
        self.spans.append(Span(stage, started - self.started, seconds))

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    def seconds(self) -> dict[Stage, float]:
        """Wall time by stage, from the start until now. Adding up takes time too: it counts as delivery."""
        seconds = wall_time(self.spans, self.elapsed())
        self.lap(Stage.DELIVER)
        if self.spans:
            seconds[Stage.DELIVER] = seconds.get(Stage.DELIVER, 0.0) + self.spans[-1].seconds
        return seconds


class Untimed(Clock):
    """Keeps nothing."""

    def add(self, stage: Stage, started: float, seconds: float) -> None:
        """Not kept."""


def wall_time(spans: Sequence[Span], total: float) -> dict[Stage, float]:
    """Seconds by stage of `pieces`. Their sum falls short of `total` by what no span covers."""
    seconds: dict[Stage, float] = {}
    for stage, _, taken in pieces(spans, total):
        seconds[stage] = seconds.get(stage, 0.0) + taken
    return seconds


def pieces(spans: Sequence[Span], total: float) -> Iterator[tuple[Stage, float, float]]:
    """The moments from 0 to `total`, each once: stage, start and seconds of pieces in order.

    A piece is of the first stage in `PRECEDENCE` whose spans cover it.
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
        if open_stages and moment > before:  # a bit for each stage; the lowest is the first
            yield PRECEDENCE[(open_stages & -open_stages).bit_length() - 1], before, moment - before
        before = moment
        covering[rank] += change
        open_stages = open_stages | 1 << rank if covering[rank] else open_stages & ~(1 << rank)
