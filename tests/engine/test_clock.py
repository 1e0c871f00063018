"""Each moment of a request counts once, whatever overlaps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echovlm_edge.runtime.contracts.request import Span, Stage
from echovlm_edge.runtime.engine.clock import PRECEDENCE, Clock, pieces, wall_time

SPANS = st.lists(st.builds(Span, st.sampled_from(Stage), st.floats(-1, 10), st.floats(0, 5)), max_size=30)


def test_every_stage_has_a_place() -> None:
    assert set(PRECEDENCE) == set(Stage) and len(PRECEDENCE) == len(Stage)


def test_what_the_model_computes_goes_before_waiting_for_it() -> None:
    spans = [Span(Stage.WAIT, 0.0, 3.0), Span(Stage.DECODE, 1.0, 1.0), Span(Stage.DETOKENIZE, 1.5, 1.0)]
    assert wall_time(spans, 4.0) == {Stage.WAIT: 1.5, Stage.DECODE: 1.0, Stage.DETOKENIZE: 0.5}


@given(SPANS)
def test_pieces_are_in_order_and_never_overlap(spans: list[Span]) -> None:
    end = 0.0
    for stage, start, seconds in pieces(spans, 8.0):
        assert start >= end - 1e-9 and seconds > 0
        end = start + seconds
        middle = start + seconds / 2
        covering = [span.stage for span in spans if span.start <= middle <= span.start + span.seconds]
        assert stage == min(covering, key=PRECEDENCE.index)
    assert end <= 8.0


@given(SPANS)
def test_the_sum_is_what_is_covered(spans: list[Span]) -> None:
    covered, end = 0.0, 0.0
    for start, stop in sorted((max(s.start, 0.0), min(s.start + s.seconds, 8.0)) for s in spans):
        covered += max(0.0, stop - max(start, end))
        end = max(end, stop)
    assert sum(wall_time(spans, 8.0).values()) == pytest.approx(covered, abs=1e-9)


def test_what_passed_before_the_engine_was_asked_is_the_connections() -> None:
    clock = Clock()
    clock.came(clock.started - 2.0)
    seconds = clock.seconds()
    assert 2.0 <= seconds[Stage.DELIVER] <= clock.elapsed()
