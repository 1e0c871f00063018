"""Continuous batching on the real engine: the same text alone and in a batch, turns, slots that come free, what is reused."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echovlm_edge.plugins.dual_path_moe.library import library_path
from echovlm_edge.runtime.backends import SlotCache
from echovlm_edge.runtime.contracts.errors import Unavailable
from echovlm_edge.runtime.contracts.request import (
    FinishReason,
    GenerationRequest,
    ImageInput,
    Priority,
    Sampling,
    Stage,
    StageStarted,
)
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.generation import (
    DELIVERY_SECONDS,
    Joined,
    Outbox,
    Prefilled,
    Progress,
    Queued,
    Written,
)
from tests.conftest import BuildBundle
from tests.support.dicom_files import png
from tests.support.waiting import wait_for
from tests.support.watched_engine import Call, MakeEngine, finish

REMEMBERS, NOTHING_KEPT = EngineOptions(), EngineOptions(prefix_bytes=0, image_bytes=0)


def requests(count: int, tokens: int = 40) -> list[GenerationRequest]:
    """Make requests of different lengths, some with one or two images, some sampled."""
    return [
        GenerationRequest(
            "Describe it. " * (1 + 3 * index),
            tuple(ImageInput(png(64 + 28 * index, 64)) for _ in range(index % 3)),
            Sampling(tokens + 3 * index, temperature=0.7 if index % 4 == 3 else 0.0, seed=index),
        )
        for index in range(count)
    ]


@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.parametrize("slots", [3, 8])
def test_the_text_is_the_same_alone_and_in_a_batch(
    make_engine: MakeEngine, build_bundle: BuildBundle, slots: int, precision: str
) -> None:
    if precision == "int4" and library_path() is None:
        pytest.skip("ONNX Runtime's own products do not sum in one order for any number of tokens")
    path = build_bundle(precision=precision)
    asked = requests(10, tokens=90)  # no text ends before the last prompt is read
    alone, _ = make_engine(EngineOptions(1, 0, 0), path)
    expected = [finish(alone, request).token_ids for request in asked]
    together, backend = make_engine(EngineOptions(slots), path)
    backend.gate.clear()
    calls = [Call(together, request) for request in asked]
    wait_for(lambda: (found := together.stats().scheduler).busy + found.waiting == len(asked))
    backend.gate.set()
    assert [call.result().token_ids for call in calls] == expected
    assert max(backend.steps) == slots, "they did not run together"
    assert len(backend.steps) < sum(map(len, expected)) * 0.7


def test_one_joins_while_others_write(make_engine: MakeEngine) -> None:
    engine, backend = make_engine()
    first = Call(engine, GenerationRequest("Why?", sampling=Sampling(400)))
    wait_for(lambda: first.written() > 3)
    short = finish(engine, GenerationRequest("How?", sampling=Sampling(5)))
    assert len(short.token_ids) == 5 and first.is_alive(), "it had to wait for the other's end"
    first.stop.set()
    assert 2 in backend.steps


def test_a_long_prompt_is_read_between_the_tokens_of_others(make_engine: MakeEngine) -> None:
    # A turn's time is learnt from turns that other processes may have held up: with this bound its chunks are the least ones.
    engine, backend = make_engine(replace(NOTHING_KEPT, turn_seconds=1e-9))
    writer = Call(engine, GenerationRequest("Why?", sampling=Sampling(1500)))
    wait_for(lambda: writer.written() > 3)
    backend.chunks.clear()
    before = len(backend.steps)
    finish(engine, GenerationRequest("Describe it. " * 100, sampling=Sampling(1)))
    assert max(backend.chunks) <= 64
    assert len(backend.steps) - before >= len(backend.chunks) - 1, "the writer stood still for more than a chunk"
    writer.stop.set()


def test_a_cancelled_call_frees_its_slot_within_a_token(make_engine: MakeEngine) -> None:
    engine, backend = make_engine(EngineOptions(1))
    first = Call(engine, GenerationRequest("Why?", sampling=Sampling(500)))
    wait_for(lambda: first.written() > 3)
    second = Call(engine, GenerationRequest("How?", sampling=Sampling(3)))
    wait_for(lambda: engine.stats().scheduler.waiting == 1)
    steps = len(backend.steps)
    first.stop.set()
    assert first.result().finish_reason is FinishReason.CANCELLED
    result = second.result()
    assert len(result.token_ids) == 3 and StageStarted(Stage.QUEUE) in second.events
    assert len(backend.steps) - steps <= 2 + 2, "the slot came free late"


def test_one_that_waits_is_gone_as_soon_as_it_is_cancelled(make_engine: MakeEngine) -> None:
    engine, _ = make_engine(EngineOptions(1))
    first = Call(engine, GenerationRequest("Why?", sampling=Sampling(500)))
    wait_for(lambda: first.written() > 3)
    second = Call(engine, GenerationRequest("How?", sampling=Sampling(3)))
    wait_for(lambda: engine.stats().scheduler.waiting == 1)
    second.stop.set()
    assert second.result().finish_reason is FinishReason.CANCELLED and first.is_alive()
    wait_for(lambda: engine.stats().scheduler.waiting == 0)
    first.stop.set()


def test_interactive_goes_before_batch(make_engine: MakeEngine) -> None:
    engine, backend = make_engine(EngineOptions(1, 0, 0))
    backend.gate.clear()
    calls = [Call(engine, GenerationRequest("Why?", sampling=Sampling(2)))]
    wait_for(lambda: engine.stats().scheduler.busy == 1)
    interactive, batch = Priority.INTERACTIVE, Priority.BATCH
    asked = {
        "batch": ("a", batch),
        "first": ("a", interactive),
        "second": ("a", interactive),
        "other": ("b", interactive),
    }
    lengths = {}
    for waiting, (name, (client, priority)) in enumerate(asked.items()):
        prompt = "How? " * (10 * waiting + 10)
        lengths[len(engine.prompts.build(prompt, []).token_ids)] = name
        request = GenerationRequest(prompt, sampling=Sampling(2), priority=priority, client=client)
        calls.append(Call(engine, request))
        wait_for(lambda waiting=waiting: engine.stats().scheduler.waiting == waiting + 1)  # type: ignore[misc]
    backend.gate.set()
    for call in calls:
        call.result()
    order = [lengths[chunk] for chunk in backend.chunks[1:]]
    assert order == ["first", "other", "second", "batch"], "batch goes last, and clients take turns"


def test_who_runs_out_of_memory_fails_alone(make_engine: MakeEngine) -> None:
    engine, backend = make_engine()
    asked = requests(3, 60)
    expected = [finish(engine, request).token_ids for request in asked]
    alone: list[object] = []

    def too_much(slots: Sequence[SlotCache]) -> bool:  # what is in slot 1, until it has failed alone
        if alone or all(slot.number != 1 for slot in slots):  # type: ignore[attr-defined]
            return False
        alone.extend(slots if len(slots) == 1 else ())
        return True

    backend.fails = too_much
    backend.gate.clear()
    calls = [Call(engine, request) for request in asked]
    wait_for(lambda: engine.stats().scheduler.busy + engine.stats().scheduler.waiting == 3)
    backend.gate.set()
    for call in calls:
        call.join(30)
    failed = [call for call in calls if call.failure]
    assert len(failed) == 1 and isinstance(failed[0].failure, MemoryError)
    for call, tokens in zip(calls, expected, strict=True):
        assert call in failed or call.result().token_ids == tokens
    assert finish(engine, asked[0]).token_ids == expected[0], "the engine did not go on"


def test_a_question_about_the_same_image_costs_no_second_look(make_engine: MakeEngine) -> None:
    picture = ImageInput(png(120, 90))
    question = GenerationRequest("Is it round?", (picture,), Sampling(20))
    forgetful, _ = make_engine(NOTHING_KEPT)
    expected = finish(forgetful, question)
    assert expected.reused_tokens == 0
    engine, backend = make_engine()
    finish(engine, GenerationRequest("Describe it.", (picture,), Sampling(20)))
    backend.chunks.clear()
    backend.embedded = 0
    answer = finish(engine, question)
    assert answer.token_ids == expected.token_ids
    assert backend.embedded == answer.prompt_tokens - answer.reused_tokens + len(answer.token_ids) - 1
    assert backend.encoded == 1 and Stage.VISION not in answer.seconds
    assert answer.reused_tokens >= answer.image_tokens - 15 and sum(backend.chunks) < 40
    stats = engine.stats()
    assert stats.images.hits == 1 and stats.prefixes.hits == 1 and stats.scheduler.reused_tokens == answer.reused_tokens


def test_another_image_is_never_taken_for_a_cached_one(make_engine: MakeEngine) -> None:
    engine, _ = make_engine()
    forgetful, _ = make_engine(NOTHING_KEPT)
    asked = [
        GenerationRequest("Describe it.", (ImageInput(png(*size)), ImageInput(png(64, 64))), Sampling(20))
        for size in ((90, 120), (120, 90), (121, 90))
    ]
    for request in asked:
        assert finish(engine, request).token_ids == finish(forgetful, request).token_ids


def test_closing_ends_what_runs_and_what_waits(make_engine: MakeEngine) -> None:
    engine, _ = make_engine(EngineOptions(1))
    calls = [Call(engine, GenerationRequest("Why?", sampling=Sampling(800))) for _ in range(3)]
    wait_for(lambda: engine.stats().scheduler.waiting == 2)
    engine.close(Unavailable("Being replaced."))
    for call in calls:
        call.join(5)
        assert isinstance(call.failure, Unavailable)
    with pytest.raises(Unavailable):
        list(engine.generate(GenerationRequest("Why?")))


def taken(put: Sequence[Progress], pause: float) -> list[list[Progress]]:
    """What a call's thread takes at a time, while another puts these in with a pause before each."""
    outbox = Outbox()

    def decoder() -> None:
        for progress in put:
            time.sleep(pause)
            outbox.put(progress)

    thread = threading.Thread(target=decoder)
    thread.start()
    every: list[list[Progress]] = []
    while sum(map(len, every)) < len(put):
        every.append(outbox.take(5.0))
        assert every[-1], "waited in vain"
    thread.join()
    return every


def tokens(count: int) -> list[Progress]:
    """A generation's, the last with its finish."""
    return [Written(index, 0.0, 0.0, FinishReason.LENGTH if index == count - 1 else None) for index in range(count)]


@given(st.lists(st.sampled_from((0, 1, 20)), min_size=1, max_size=3))
@settings(max_examples=20)
def test_an_outbox_loses_nothing_and_keeps_the_order(pauses: list[int]) -> None:
    for milliseconds in pauses:
        put = [Queued(), Joined(0), Prefilled(0.0, 0.0), *tokens(5)]
        assert [progress for some in taken(put, milliseconds / 1000) for progress in some] == put


def test_a_fast_models_tokens_are_taken_together_and_a_slow_ones_one_by_one() -> None:
    assert len(taken(tokens(200), 0.0005)) < 100
    outbox = Outbox()
    for token in tokens(8):  # each comes after the one before was taken
        outbox.put(token)
        assert outbox.take(5) == [token]
    assert Outbox().take(0.01) == []


def test_the_first_token_waits_for_no_other() -> None:
    outbox = Outbox()
    first, second, *_ = tokens(3)
    outbox.put(Prefilled(0.0, 0.0))
    assert len(outbox.take(0)) == 1
    outbox.put(first)
    assert outbox.take(0) == [first]
    outbox.put(second)
    before = time.monotonic()
    assert outbox.take(0) == [second] and time.monotonic() - before > DELIVERY_SECONDS / 2


def test_only_what_comes_next_or_a_look_of_its_own_takes_that_a_prompt_is_read() -> None:
    read: list[Progress] = [Joined(0), Prefilled(0.0, 0.0)]
    first, *_ = tokens(2)
    assert taken([*read, first], 0.05) == [[*read, first]]
    outbox = Outbox()
    outbox.put(read[0])
    assert outbox.take(0.01) == read[:1]
