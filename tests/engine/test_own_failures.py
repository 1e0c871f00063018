"""What goes wrong with one request ends that one: numbers that are none, callbacks that raise, errors that several callers get."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from echovlm_edge.runtime.backends import Floats, Kept, SlotCache, SlotMemory
from echovlm_edge.runtime.contracts.errors import Busy, Unavailable, UserError, fresh
from echovlm_edge.runtime.contracts.request import (
    FinishReason,
    Frame,
    GenerationRequest,
    ImageInput,
    Priority,
    Sampling,
)
from echovlm_edge.runtime.engine.caching.reuse import BLOCK
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from tests.conftest import BuildBundle
from tests.support.dicom_files import png
from tests.support.waiting import wait_for
from tests.support.watched_engine import Call, MakeEngine, WatchedBackend, finish

FORGETFUL = EngineOptions(1, 0, 0)
OTHERS = [
    GenerationRequest("Why? " * (3 + 2 * index), sampling=Sampling(40, temperature=temperature, seed=index))
    for index, temperature in enumerate((0.0, 0.7, 0.0))
]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_logits_that_are_no_numbers_end_their_own_call(make_engine: MakeEngine, temperature: float) -> None:
    alone = replace(FORGETFUL, ignore_stop=True)
    expected = [finish(make_engine(alone)[0], request).token_ids for request in OTHERS]
    engine, backend = make_engine(EngineOptions(ignore_stop=True))
    wrong = GenerationRequest("How? " * 40, sampling=Sampling(40, temperature=temperature))
    length = finish(engine, GenerationRequest(wrong.prompt, sampling=Sampling(1))).prompt_tokens
    backend.nan_after = lambda past: past == length + 20
    backend.gate.clear()
    calls = [Call(engine, request) for request in (wrong, *OTHERS)]
    wait_for(lambda: engine.stats().scheduler.busy + engine.stats().scheduler.waiting == 4)
    backend.gate.set()
    assert [call.result().token_ids for call in calls[1:]] == expected
    calls[0].join(30)
    assert isinstance(calls[0].failure, UserError) and "no usable numbers" in str(calls[0].failure)
    assert max(backend.steps) == 4, "they did not run together"


@pytest.mark.parametrize("target", ["cpu", "portable"])
def test_nan_in_a_slot_is_gone_before_the_next_sequence(
    make_engine: MakeEngine, build_bundle: BuildBundle, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """A prompt whose embeddings are NaN leaves NaN in the keys and values, as a GPU's float16 may."""
    path = build_bundle(target=target) if target != "cpu" else build_bundle()
    good = GenerationRequest("Why? Why?", sampling=Sampling(60))
    expected = finish(make_engine(FORGETFUL, path)[0], good).token_ids
    engine, _ = make_engine(EngineOptions(1), path)
    bad = GenerationRequest("How? " * 80, sampling=Sampling(5))
    embed = WatchedBackend.embed

    def no_numbers(self: WatchedBackend, token_ids: NDArray[np.int64]) -> Floats:
        return np.full_like(embed(self, token_ids), np.nan)

    with monkeypatch.context() as patched:
        patched.setattr(WatchedBackend, "embed", no_numbers)
        with pytest.raises(UserError, match="no usable numbers"):
            finish(engine, bad)
        with pytest.raises(UserError, match="no usable numbers"):  # a study's preparation chooses no token
            engine.prepare(engine.read_image(ImageInput(png(90, 90))), "", "", lambda: False)
    assert finish(engine, good).token_ids == expected
    assert engine.stats().prefixes.entries <= 1, "what is no number was kept"


def test_a_caller_that_cannot_be_asked_ends_its_own_call(make_engine: MakeEngine) -> None:
    engine, backend = make_engine()
    beside = Call(engine, OTHERS[0])

    def stopped() -> bool:
        if len(backend.steps) > 10 and threading.current_thread().name == "decoder":
            raise RuntimeError
        return False

    with pytest.raises(RuntimeError):
        list(engine.generate(GenerationRequest("How?", sampling=Sampling(200)), stopped))
    assert beside.result().finish_reason is not FinishReason.CANCELLED
    assert finish(engine, OTHERS[1]).token_ids


def test_every_caller_gets_an_exception_of_its_own(make_engine: MakeEngine) -> None:
    engine, backend = make_engine(EngineOptions(1))
    reason = Unavailable("Being replaced.")
    backend.encodes.clear()
    pictured = GenerationRequest("Why?", (ImageInput(png(64, 64)),), Sampling(5))
    calls = [Call(engine, GenerationRequest("Why?", sampling=Sampling(800))) for _ in range(3)]
    calls += [Call(engine, pictured) for _ in range(2)]
    wait_for(lambda: engine.stats().scheduler.waiting == 2 and backend.encoded == 1)
    jobs = engine._encoder._jobs
    wait_for(lambda: [len(job.wanted_by) for job in jobs.values()] == [2])
    engine.close(reason)
    backend.encodes.set()
    for call in calls:
        call.join(10)
    failures = [call.failure for call in calls]
    for _ in range(2):
        for request in (OTHERS[0], pictured):
            with pytest.raises(Unavailable, match=r"Being replaced\.") as refused:
                list(engine.generate(request))
            failures.append(refused.value)
    assert all(isinstance(failure, Unavailable) and str(failure) == str(reason) for failure in failures)
    assert len({id(failure) for failure in (reason, *failures)}) == len(failures) + 1
    assert reason.__traceback__ is None, "it pins the requests of all that it was raised for"


def test_an_image_that_fails_fails_for_each_caller_by_itself(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, backend = make_engine()

    def fails(self: WatchedBackend, features: Floats) -> Floats:
        raise MemoryError

    monkeypatch.setattr(WatchedBackend, "project", fails)
    backend.encodes.clear()
    calls = [Call(engine, GenerationRequest("Why?", (ImageInput(png(64, 64)),))) for _ in range(3)]
    wait_for(lambda: [len(job.wanted_by) for job in engine._encoder._jobs.values()] == [3])
    backend.encodes.set()
    for call in calls:
        call.join(10)
    failures = [call.failure for call in calls]
    assert all(isinstance(failure, MemoryError) for failure in failures)
    assert len({id(failure) for failure in failures}) == 3


@pytest.mark.parametrize("where", ["encode", "turn"])
def test_a_failure_keeps_no_picture_alive(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    engine, _ = make_engine(EngineOptions(1, 0, 0))

    def fails(self: WatchedBackend, *args: object) -> None:
        raise MemoryError

    monkeypatch.setattr(WatchedBackend, where, fails)

    def failing_call() -> weakref.ref[Frame]:
        (frame,) = engine.read_image(ImageInput(png(64, 64)))
        try:
            list(engine.generate(GenerationRequest("Why?", frames=(frame,), sampling=Sampling(9))))
        except MemoryError:
            return weakref.ref(frame)
        raise AssertionError("it did not fail")

    gc.collect()
    gc.disable()  # what only a collection frees stays for long beside a busy server
    try:
        picture = failing_call()
        wait_for(lambda: picture() is None)
    finally:
        gc.enable()


def test_a_fresh_error_says_the_same() -> None:
    busy = Busy("Later.", 3.0)
    copied = fresh(busy)
    assert copied is not busy and str(copied) == "Later." and copied.retry_seconds == 3.0
    try:
        raise copied
    except Busy:
        assert busy.__traceback__ is None


def test_a_call_that_is_joining_is_ended_by_a_close(make_engine: MakeEngine) -> None:
    engine, backend = make_engine()
    backend.embeds.clear()
    call = Call(engine, OTHERS[0])
    wait_for(lambda: backend.embedded > 0)
    engine.close()
    backend.embeds.set()
    call.join(10)
    assert isinstance(call.failure, Unavailable)


@pytest.mark.parametrize("kept", [Priority.BACKGROUND, Priority.BATCH])
def test_nobody_waits_for_a_copy_of_keys_and_values(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, kept: Priority
) -> None:
    engine, backend = make_engine(EngineOptions(1))
    copying, may_go_on = threading.Event(), threading.Event()
    (slot,) = backend.inner.new_slots(SlotMemory(1, BLOCK))
    copies = {name: getattr(type(slot), name) for name in ("read", "park")}

    def slow(name: str) -> Callable[[SlotCache, int], Kept]:
        def copy(slot: SlotCache, tokens: int, *start: int) -> Kept:
            copying.set()
            may_go_on.wait(20)
            return copies[name](slot, tokens, *start)  # type: ignore[no-any-return]

        return copy

    backend.gate.clear()
    stop = threading.Event()
    first: threading.Thread
    if kept is Priority.BATCH:
        first = Call(engine, GenerationRequest("Why? " * 50, sampling=Sampling(500), priority=kept))
        stop = first.stop
    else:
        frames = engine.read_image(ImageInput(png(200, 200))) * 20  # more than one chunk of tokens
        first = threading.Thread(target=engine.prepare, args=(frames, "", "", stop.is_set), daemon=True)
        first.start()
    wait_for(lambda: engine.stats().scheduler.busy == 1)
    for name in copies:
        monkeypatch.setattr(type(slot), name, slow(name))
    second = Call(engine, GenerationRequest("How?", sampling=Sampling(3)))
    wait_for(lambda: engine.stats().scheduler.waiting == 1)
    backend.gate.set()
    assert copying.wait(20), "nothing was copied"
    asked = threading.Thread(target=engine.stats, daemon=True)
    asked.start()
    asked.join(5)
    waits = asked.is_alive()
    may_go_on.set()
    assert not waits, "a scrape waited for the copy"
    assert len(second.result().token_ids) == 3
    stop.set()
    first.join(10)


def test_clients_take_turns_at_images_by_their_size(make_engine: MakeEngine) -> None:
    engine, backend = make_engine(EngineOptions(8, 0, 0))
    backend.encodes.clear()
    waiting = engine._encoder._waiting

    def ask(client: str, size: int, count: int, queued: int) -> Call:
        images = tuple(ImageInput(png(size + 28 * index, size)) for index in range(count))
        call = Call(engine, GenerationRequest("Why?", images, Sampling(1), client=client))
        wait_for(lambda: len(waiting) == queued)
        return call

    calls = [ask("large", 280, 3, 2)]
    wait_for(lambda: backend.encoded == 1), "its first image is counted before the other client comes"
    calls.append(ask("small", 56, 6, 8))
    backend.encodes.set()
    for call in calls:
        call.result()
    large = [index for index, patches in enumerate(backend.images) if patches > 100]
    assert large == [0, 1, 8], f"level at first, the earlier goes first, then the small ones: {backend.images}"


def test_another_client_never_learns_that_an_image_was_sent_before(make_engine: MakeEngine) -> None:
    engine, backend = make_engine()

    def ask(scope: str) -> GenerationRequest:
        return GenerationRequest("Why?", (ImageInput(png(200, 120)),), Sampling(10), client=scope, scope=scope)

    first, other, same = (finish(engine, ask(scope)) for scope in ("a", "b", "a"))
    assert first.token_ids == other.token_ids == same.token_ids
    assert (first.reused_tokens, other.reused_tokens) == (0, 0) and same.reused_tokens > 0
    assert backend.encoded == 2
    backend.encodes.clear()
    calls = [Call(engine, GenerationRequest("Why?", (ImageInput(png(100, 100)),), scope=scope)) for scope in "ab"]
    wait_for(lambda: len(engine._encoder._jobs) == 2), "one client waits for the other's image"
    backend.encodes.set()
    for call in calls:
        call.result()


def test_a_study_is_read_for_its_own_clients_scope(make_engine: MakeEngine) -> None:
    engine, _ = make_engine()
    picture = ImageInput(png(140, 112))
    frames = tuple(engine.read_image(picture))
    engine.prepare(frames, "cart", "client cart", lambda: False)

    def reused(scope: str) -> int:
        return finish(engine, GenerationRequest("Why?", (), Sampling(1), frames, scope=scope)).reused_tokens

    assert reused("client other") == 0 < reused("client cart")
