"""Where one request's time goes: spans of work, one after another."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from echovlm_edge.runtime.request import Span, Stage


class Clock:
    """Keeps the spans of one request."""

    def __init__(self) -> None:
        """Starts now."""
        self.spans: list[Span] = []
        self.started = time.perf_counter()

    @contextmanager
    def measure(self, stage: Stage) -> Iterator[None]:
        """A span around what is done within."""
        started = self.elapsed()
        try:
            yield
        finally:
            self.spans.append(Span(stage, started, self.elapsed() - started))

    def just_took(self, stage: Stage, seconds: float) -> None:
        """A span that ends now."""
        self.spans.append(Span(stage, self.elapsed() - seconds, seconds))

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    def seconds(self) -> dict[Stage, float]:
        """Wall time by stage."""
        totals: dict[Stage, float] = {}
        for span in self.spans:
            totals[span.stage] = totals.get(span.stage, 0.0) + span.seconds
        return totals
