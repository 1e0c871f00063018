"""Batch reports give their slots to interactive ones, are kept as they were, and end with the text that they have alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.contracts.errors import Unavailable
from echovlm_edge.runtime.contracts.request import (
    FinishReason,
    Frame,
    GenerationRequest,
    ImageInput,
    Priority,
    Sampling,
)
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from tests.support.dicom_files import png
from tests.support.waiting import wait_for
from tests.support.watched_engine import Call, MakeEngine, WatchedBackend, finish

SHORT = GenerationRequest("How?", sampling=Sampling(3))
BATCH = [
    GenerationRequest(
        "Describe it. " * (2 + 20 * index),
        (ImageInput(png(84 + 28 * index, 84)),),
        Sampling(120, temperature=0.8 * (index % 2), seed=index),
        priority=Priority.BATCH,
    )
    for index in range(4)
]


def alone(make_engine: MakeEngine, *requests: GenerationRequest) -> list[tuple[int, ...]]:
    """The tokens of each by itself."""
    engine, _ = make_engine(EngineOptions(1, 0, 0, ignore_stop=True))
    return [finish(engine, request).token_ids for request in requests]


def test_batch_gives_its_slots_to_interactive_calls(make_engine: MakeEngine) -> None:
    expected = alone(make_engine, *BATCH[:2], SHORT)
    engine, backend = make_engine(EngineOptions(2, 0, 0, ignore_stop=True))
    backend.holds_after = 3
    calls = [Call(engine, request) for request in BATCH[:2]]
    wait_for(lambda: not backend.gate.is_set())
    steps = len(backend.steps)
    interactive = [Call(engine, SHORT) for _ in range(2)]
    wait_for(lambda: here(engine) == 4)
    backend.gate.set()
    short = [call.result() for call in interactive]
    long = [call.result() for call in calls]
    assert [result.token_ids for result in (*long, *short)] == [*expected[:2], expected[2], expected[2]]
    of_short = [max(pasts) < short[0].prompt_tokens + 3 for pasts in backend.pasts[steps:]]
    assert True in of_short[:4] and False in of_short, "they waited for a batch report's end"
    read = sum(result.prompt_tokens for result in (*long, *short))
    assert sum(backend.chunks) == read, "keys and values were computed again"
    assert backend.embedded == read + sum(backend.steps)
    stats = engine.stats().scheduler
    assert (stats.parked, stats.parked_bytes, stats.busy, stats.waiting) == (0, 0, 0, 0)


def test_a_parked_report_is_counted_and_leaves_when_it_is_cancelled(make_engine: MakeEngine) -> None:
    engine, _ = make_engine(EngineOptions(1, ignore_stop=True))
    batch = Call(engine, replace(BATCH[0], sampling=Sampling(500)))
    wait_for(lambda: batch.written() > 2)
    long = Call(engine, GenerationRequest("Why?", sampling=Sampling(900)))
    wait_for(lambda: engine.stats().scheduler.parked == 1)
    wait_for(lambda: long.written() > 0)
    assert engine.stats().scheduler.parked_bytes > 0 and engine.stats().scheduler.waiting == 0
    batch.stop.set()
    assert batch.result().finish_reason is FinishReason.CANCELLED
    wait_for(lambda: engine.stats().scheduler.parked == 0)
    assert engine.stats().scheduler.parked_bytes == 0 and long.is_alive()
    long.stop.set()


def test_a_parked_report_ends_where_the_engine_is_closed(make_engine: MakeEngine) -> None:
    engine, _ = make_engine(EngineOptions(1, ignore_stop=True))
    batch = Call(engine, replace(BATCH[0], sampling=Sampling(500)))
    wait_for(lambda: batch.written() > 2)
    beside = Call(engine, GenerationRequest("Why?", sampling=Sampling(900)))
    wait_for(lambda: engine.stats().scheduler.parked == 1)
    engine.close()
    for call in (batch, beside):
        call.join(10)
        assert isinstance(call.failure, Unavailable)
    stats = engine.stats().scheduler
    assert (stats.parked, stats.parked_bytes, stats.waiting) == (0, 0, 0)


def test_a_report_that_is_parked_while_it_is_read_goes_on_where_it_was(make_engine: MakeEngine) -> None:
    request = replace(BATCH[1], prompt="Describe it. " * 230)
    expected = alone(make_engine, request)[0]
    engine, backend = make_engine(EngineOptions(1, 0, 0, ignore_stop=True))
    backend.gate.clear()
    batch = Call(engine, request)
    wait_for(lambda: engine.stats().scheduler.busy == 1)
    interactive = Call(engine, SHORT)
    wait_for(lambda: engine.stats().scheduler.waiting == 1)
    backend.gate.set()
    interactive.result()
    result = batch.result()
    assert result.token_ids == expected
    assert sum(backend.chunks) == result.prompt_tokens + interactive.result().prompt_tokens, "it was read twice"
    assert len(backend.chunks) > 2, "it was not interrupted"


def test_no_more_batch_has_slots_than_could_be_parked(make_engine: MakeEngine) -> None:
    requests = [replace(request, sampling=Sampling(30)) for request in BATCH[:3]]
    expected = alone(make_engine, *requests, SHORT)
    engine, backend = make_engine(EngineOptions(3, parked_bytes=1, ignore_stop=True))
    backend.gate.clear()
    calls = [Call(engine, request) for request in requests]
    wait_for(lambda: here(engine) == 3)
    backend.gate.set()
    assert [call.result().token_ids for call in calls] == expected[:3]
    assert max(backend.steps) == 1, "two had slots that could not have been taken from them"
    batch = Call(engine, replace(requests[0], sampling=Sampling(500)))
    wait_for(lambda: batch.written() > 2)
    assert finish(engine, SHORT).token_ids == expected[3]
    assert max(backend.steps) == 2 and engine.stats().scheduler.parked == 0, "the free slots are for interactive calls"
    batch.stop.set()


PROMPTS = [
    GenerationRequest(
        "Describe it. " * (1 + 9 * index),
        tuple(ImageInput(png(64 + 28 * index, 64)) for _ in range(index % 3)),
        Sampling(12 + 9 * index, temperature=0.9 * (index % 4 == 1), seed=index),
    )
    for index in range(6)
]
arrivals = st.lists(
    st.tuples(
        st.sampled_from(["interactive", "batch", "batch", "study"]),
        st.integers(0, len(PROMPTS) - 1),
        st.sampled_from("ab"),
        st.one_of(st.none(), st.integers(0, 8)),  # cancelled after so many texts
        st.integers(0, 4),  # the next comes after so many more steps
    ),
    min_size=2,
    max_size=9,
)


@pytest.fixture(scope="module")
def texts(golden_bundle: Path) -> list[tuple[int, ...]]:
    engine = ReportEngine.open(golden_bundle, threads=2, options=EngineOptions(1, 0, 0, ignore_stop=True))
    expected = [finish(engine, request).token_ids for request in PROMPTS]
    engine.close()
    return expected


def pictures(engine: ReportEngine, index: int) -> tuple[Frame, ...]:
    """A prompt's images, as a study has them."""
    return tuple(frame for image in PROMPTS[index].images for frame in engine.read_image(image))


@given(
    arrivals, st.sampled_from([1, 2, 3]), st.sampled_from([0, 300_000, 1 << 30]), st.sampled_from([0, 400_000, 1 << 30])
)
@settings(max_examples=25)
def test_whatever_comes_and_goes_each_text_is_the_one_that_it_has_alone(
    golden_bundle: Path, texts: list[tuple[int, ...]], come: list, slots: int, parked: int, kept: int
) -> None:
    bundle = Bundle(golden_bundle)
    backend = WatchedBackend(bundle)
    engine = ReportEngine(bundle, backend, options=EngineOptions(slots, kept, kept, parked, ignore_stop=True))
    calls = list[tuple[int, Call]]()
    leaving = list[tuple[threading.Event, Callable[[], bool]]]()
    try:
        for kind, index, client, gone_after, pause in come:
            stop, written = begin(engine, kind, index, client, calls)
            if gone_after is not None:
                leaving.append((stop, lambda written=written, after=gone_after: written() >= after))  # type: ignore[misc]
            enough = len(backend.steps) + pause
            wait_for(lambda enough=enough: len(backend.steps) >= enough or idle(engine))  # type: ignore[misc]
            for stop, now in leaving:
                if now():
                    stop.set()
            assert engine.stats().scheduler.parked_bytes <= parked
        for stop, _ in leaving:
            stop.set()
        for index, call in calls:
            result = call.result()
            if result.finish_reason is FinishReason.CANCELLED:
                assert call.stop.is_set() and result.token_ids == texts[index][: len(result.token_ids)]
            else:
                assert result.token_ids == texts[index]
        wait_for(lambda: idle(engine))
        stats = engine.stats().scheduler
        assert (stats.parked, stats.parked_bytes, stats.busy, stats.waiting) == (0, 0, 0, 0)
    finally:
        engine.close()


def begin(
    engine: ReportEngine, kind: str, index: int, client: str, calls: list[tuple[int, Call]]
) -> tuple[threading.Event, Callable[[], int]]:
    """Let one come; returns what stops it and how many texts it has written."""
    if kind == "study":
        stop = threading.Event()
        frames = pictures(engine, index) or pictures(engine, 1)
        threading.Thread(target=engine.prepare, args=(frames, client, client, stop.is_set), daemon=True).start()
        return stop, lambda: 0
    priority = Priority.INTERACTIVE if kind == "interactive" else Priority.BATCH
    call = Call(engine, replace(PROMPTS[index], client=client, scope=client, priority=priority))
    calls.append((index, call))
    return call.stop, call.written


def here(engine: ReportEngine) -> int:
    """How many generations are on their way."""
    stats = engine.stats().scheduler
    return stats.busy + stats.waiting + stats.parked


def idle(engine: ReportEngine) -> bool:
    """Whether all that came has ended."""
    return not (here(engine) or engine._encoder._jobs)
