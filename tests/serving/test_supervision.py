"""Hangs, swaps and the end of a server in every order: each engine is closed exactly once, and nobody is left waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echovlm_edge.runtime.contracts.errors import NotPossibleHere, Unavailable
from echovlm_edge.runtime.contracts.request import Event, Finished, FinishReason, Frame, GenerationRequest
from echovlm_edge.runtime.engine.engine_info import EngineInfo
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.serving.supervision.served_engine import ServedEngine, WatchdogOptions
from tests.support.waiting import wait_for

ASKED = GenerationRequest("Why?")
SECONDS = 20  # for what must happen; a test that fails takes so long
Outcome = TypeVar("Outcome")


class FakeEngine:
    """An engine whose calls last until the test lets them end, and that hangs when the test says so."""

    def __init__(self, number: int) -> None:
        self.info = EngineInfo(f"engine {number}", "0" * 64, str(number), 1, "cpu", "fp32", 100, 1000)
        self.closes: list[Exception | None] = []
        self.hangs = False
        self.inside = threading.Semaphore(0)
        self.may_end = threading.Event()

    def generate(self, request: GenerationRequest, stopped: Callable[[], bool]) -> Iterator[Event]:
        self._work(stopped)
        yield Finished(self.info.model, (), FinishReason.STOP, 0, 0, {}, 0.0)

    def prepare(self, frames: Sequence[Frame], client: str, scope: str, stopped: Callable[[], bool]) -> None:
        self._work(stopped)

    def prompt_tokens(self, frames: Sequence[Frame]) -> int:
        self._work(lambda: False)
        return 7

    def close(self, reason: Exception | None = None) -> None:
        self.closes.append(reason)
        self.may_end.set()

    def seconds_in_turn(self) -> float:
        return 1e6 if self.hangs else 0.0

    def _work(self, stopped: Callable[[], bool]) -> None:
        self.inside.release()
        while not self.may_end.wait(0.01):
            if stopped():
                return
        if self.closes:
            raise self.closes[0] or Unavailable("The engine was shut down: try again.")


class Loads:
    """Opens engines; from the second on, a load waits until the test says how it ends."""

    def __init__(self, held: bool = True) -> None:
        self.engines: list[FakeEngine] = []
        self.began = threading.Semaphore(0)
        self._held = held
        self._ends: list[Exception | None] = []
        self._told = threading.Condition()

    def end(self, failure: Exception | None = None) -> None:
        with self._told:
            self._ends.append(failure)
            self._told.notify_all()

    def __call__(self) -> ReportEngine:
        if self.engines and self._held:
            self.began.release()
            with self._told:
                assert self._told.wait_for(lambda: self._ends, SECONDS)
                failure = self._ends.pop(0)
            if failure:
                raise failure
        self.engines.append(FakeEngine(len(self.engines)))
        return self.engines[-1]  # type: ignore[return-value]

    @property
    def closes(self) -> list[int]:
        """How often each engine was closed."""
        return [len(engine.closes) for engine in self.engines]


class Served:
    """A served engine whose loads and hangs the test decides, and what it said about itself."""

    def __init__(self, replacements: int = 3, load_seconds: float = 600) -> None:
        self.loads = Loads()
        self.states: list[bool] = []
        self.gave_up = threading.Event()
        options = WatchdogOptions(60, replacements, poll_seconds=0.005, load_seconds=load_seconds)
        self.engine = ServedEngine(self.loads, options, self.gave_up.set)
        self.engine.on_serving = self.states.append
        self._threads = ThreadPoolExecutor(16)

    def start(self, work: Callable[..., Outcome], *given: Any) -> Future[Outcome]:
        return self._threads.submit(work, *given)

    def call(self) -> Future[list[Event]]:
        """A call that is inside the engine of the moment."""
        engine = self.loads.engines[-1]
        running = self.start(lambda: list(self.engine.generate(ASKED, lambda: False)))
        assert engine.inside.acquire(timeout=SECONDS)
        return running

    def swap(self) -> Future[bool]:
        """A swap whose load has begun."""
        swap = self.start(self.engine.swap)
        assert self.loads.began.acquire(timeout=SECONDS)
        return swap

    def hang(self) -> FakeEngine:
        """Let the engine of the moment hang; returns it once its calls have been ended."""
        engine = self.loads.engines[-1]
        engine.hangs = True
        wait_for(lambda: engine.closes)
        return engine


@contextmanager
def serving(replacements: int = 3, load_seconds: float = 600) -> Iterator[Served]:
    served = Served(replacements, load_seconds)
    try:
        yield served
    finally:
        for engine in served.loads.engines:
            engine.may_end.set()
        for _ in range(9):
            served.loads.end(NotPossibleHere("The test is over."))
        served.engine.close()
        served._threads.shutdown()


def test_an_engine_that_hangs_during_a_swap_is_followed_by_the_swaps_own() -> None:
    with serving() as served:
        call, swap = served.call(), served.swap()
        first = served.hang()
        with pytest.raises(Unavailable, match="hung and is being replaced"):
            call.result(SECONDS)
        served.loads.end()
        assert swap.result(SECONDS)
        second = served.loads.engines[1]
        wait_for(lambda: served.states[-1:] == [True])
        assert served.engine.info.model == "engine 1" and served.states == [False, True]
        assert not served.loads.began.acquire(timeout=0.1), "a third engine was loaded beside the one that serves"
        assert (len(first.closes), second.closes) == (1, [])
        served.engine.close()
        assert served.loads.closes == [1, 1]


def test_an_engine_that_hangs_during_a_swap_that_fails_is_replaced() -> None:
    with serving() as served:
        swap = served.swap()
        served.hang()
        served.loads.end(NotPossibleHere("The bundle is damaged."))
        assert not swap.result(SECONDS)
        assert served.loads.began.acquire(timeout=SECONDS), "nobody loads another engine"
        served.loads.end()
        wait_for(lambda: served.states == [False, True])
        assert served.engine.info.model == "engine 1"
        served.engine.close()
        assert served.loads.closes == [1, 1]


def test_calls_are_refused_at_once_while_no_engine_serves() -> None:
    with serving() as served:
        served.hang()
        assert served.loads.began.acquire(timeout=SECONDS)
        errors = []
        for ask in (
            lambda: list(served.engine.generate(ASKED, lambda: False)),
            lambda: served.engine.prompt_tokens([]),
            lambda: list(served.engine.generate(ASKED, lambda: False)),
        ):
            with pytest.raises(Unavailable, match="hung and is being replaced") as refused:
                served.start(ask).result(SECONDS)
            errors.append(refused.value)
        assert len(set(map(id, errors))) == 3, (
            "calls share an exception, and its traceback keeps what each of them held"
        )
        assert served.engine.info.model == "engine 0"


@pytest.mark.parametrize("because", ["swap", "hang"])
def test_a_server_that_ends_while_an_engine_is_loaded_leaves_none_open(because: str) -> None:
    with serving() as served:
        swap = None
        if because == "swap":
            swap = served.swap()
        else:
            served.hang()
            assert served.loads.began.acquire(timeout=SECONDS)
        served.engine.close()  # does not wait for the load
        served.loads.end()
        wait_for(lambda: len(served.loads.engines) == 2 and served.loads.engines[1].closes)
        if swap:
            assert not swap.result(SECONDS)
        served.engine.close()
        assert served.loads.closes == [1, 1]
        assert True not in served.states


def test_a_swap_after_the_end_loads_nothing() -> None:
    with serving() as served:
        served.engine.close()
        served.loads.end()
        assert not served.engine.swap()
        assert served.loads.closes == [1]


def test_what_is_still_used_stays_open_and_is_closed_with_its_last_call() -> None:
    with serving() as served:
        first = served.loads.engines[0]
        used = [
            served.start(served.engine.prepare, [], "client", "scope", lambda: False),
            served.start(served.engine.prompt_tokens, []),
        ]
        for _ in used:
            assert first.inside.acquire(timeout=SECONDS)
        swap = served.swap()
        served.loads.end()
        assert swap.result(SECONDS)
        second = served.swap()
        served.loads.end()
        assert second.result(SECONDS)
        wait_for(lambda: served.loads.engines[1].closes)  # nobody used it
        assert first.closes == [], "an engine was closed under a study that it reads"
        first.may_end.set()
        for use in used:
            use.result(SECONDS)
        wait_for(lambda: first.closes)
        served.engine.close()
        assert served.loads.closes == [1, 1, 1]


def test_the_end_closes_engines_that_were_swapped_out_too() -> None:
    with serving() as served:
        call = served.call()
        swap = served.swap()
        served.loads.end()
        assert swap.result(SECONDS)
        served.engine.close()
        served.engine.close()
        with pytest.raises(Unavailable):
            call.result(SECONDS)
        assert served.loads.closes == [1, 1]


def test_an_engine_that_hangs_after_it_was_swapped_out_ends_its_calls() -> None:
    with serving() as served:
        call, first = served.call(), served.loads.engines[0]
        swap = served.swap()
        served.loads.end()
        assert swap.result(SECONDS)
        first.hangs = True
        with pytest.raises(Unavailable, match="hung"):
            call.result(SECONDS)
        assert served.states == [], "health follows the engine that serves"
        served.engine.close()
        assert served.loads.closes == [1, 1]


def test_who_is_told_cannot_end_the_watchdog() -> None:
    with serving() as served:

        def fail(*_: object) -> None:
            raise RuntimeError("a listener's own mistake")

        served.engine.on_serving = served.engine.on_replaced = fail
        for turn in (1, 2):
            served.hang()
            assert served.loads.began.acquire(timeout=SECONDS), "the watchdog is gone"
            served.loads.end()
            wait_for(lambda turn=turn: served.engine.info.model == f"engine {turn}")  # type: ignore[misc]


def test_a_bundle_that_cannot_be_loaded_is_tried_again_after_a_hang() -> None:
    with serving() as served:
        served.hang()
        for failure in (NotPossibleHere("It is damaged."), RuntimeError("quoting a request"), None):
            assert served.loads.began.acquire(timeout=SECONDS)
            served.loads.end(failure)
        wait_for(lambda: served.states == [False, True])


def test_giving_up_closes_all_and_is_told_once() -> None:
    with serving(replacements=0) as served:
        call = served.call()
        swap = served.swap()
        served.hang()
        with pytest.raises(Unavailable):
            call.result(SECONDS)
        assert served.gave_up.wait(SECONDS)
        served.loads.end()
        assert not swap.result(SECONDS)
        assert served.loads.closes == [1, 1]


@pytest.mark.parametrize("because", ["load hangs", "load fails", "swap hangs"])
def test_a_process_whose_engine_cannot_be_replaced_is_given_up(because: str) -> None:
    """A GPU that hangs mostly hangs for the next engine too."""
    with serving(load_seconds=0.1) as served:
        if because == "swap hangs":
            served.swap()
        served.hang()
        while because == "load fails" and served.loads.began.acquire(timeout=0.5):
            served.loads.end(NotPossibleHere("The bundle is damaged."))
        assert served.gave_up.wait(SECONDS)
        assert served.states == [False] and served.loads.closes == [1]


@settings(max_examples=200)
@given(st.lists(st.sampled_from(["swap", "bad swap", "call", "end call", "hang", "check"]), max_size=30))
def test_whatever_happens_every_engine_is_closed_once(steps: list[str]) -> None:
    loads = Loads(held=False)
    served = ServedEngine(loads, WatchdogOptions(60, 1000, poll_seconds=1e6))
    calls: list[Iterator[Event]] = []

    def damaged() -> ReportEngine:
        raise NotPossibleHere("The bundle is damaged.")

    for step in steps:
        current = loads.engines[-1]
        if step == "swap":
            assert served.swap()
        elif step == "bad swap":
            served._open_new, good = damaged, served._open_new
            assert not served.swap()
            served._open_new = good
        elif step == "call" and not current.hangs:
            current.may_end.set()
            calls.append(served.generate(ASKED, lambda: False))
            next(calls[-1])
        elif step == "end call" and calls:
            list(calls.pop(0))
        elif step == "hang":
            current.hangs = True
        elif step == "check":
            served.check()
            wait_for(lambda: not loads.engines[-1].hangs and served.info is loads.engines[-1].info)
        assert max(loads.closes) <= 1
        assert not loads.engines[-1].closes, "the engine that serves is closed"
    for call in calls:
        list(call)
    served.close()
    assert set(loads.closes) == {1}
