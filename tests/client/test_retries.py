"""Retries: what may be made again is, after the server's delay and within one timeout; nothing else is made twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from echovlm_edge.runtime.client.wire.attempts import Retries
from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.client.wire.requests import ReportRequest
from echovlm_edge.runtime.contracts.errors import Busy, NotPossibleHere, ServerUnavailable, Unavailable, UserError
from echovlm_edge.runtime.contracts.request import Event, GenerationRequest, ImageInput, TextDelta
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions
from tests.support.decoding_engine import DecodingEngine
from tests.support.dicom_files import png

ASKED = ReportRequest(images=[ImageInput(png(8, 8))])


class Refusing(DecodingEngine):
    """Refuses its first calls, in turn, before or after its first text."""

    def __init__(self, *refusals: UserError, begins: bool = False) -> None:
        super().__init__()
        self.refusals, self.begins, self.calls = list(refusals), begins, 0

    def generate(self, request: GenerationRequest, stopped: Callable[[], bool]) -> Iterator[Event]:
        self.calls += 1
        if self.begins:
            yield TextDelta("Begun")
        if self.refusals:
            raise self.refusals.pop(0)
        yield from super().generate(request, stopped)


@contextmanager
def asking(engine: DecodingEngine, retries: Retries) -> Iterator[Connection]:
    server = ReportServer(engine, ServerOptions("127.0.0.1:0", grace_seconds=0.1))
    with Connection(server.address, retries=retries) as client:
        yield client
    server.stop()


def test_a_full_server_is_asked_again_after_its_delay() -> None:
    engine = Refusing(Busy("Full.", 0.2), Busy("Full.", 0.2))
    with asking(engine, Retries(3)) as client:
        started = time.monotonic()
        events = list(client.generate(ASKED))
    assert events[-1].result.text == "Done" and engine.calls == 3
    assert time.monotonic() - started >= 0.4


def test_an_engine_that_is_being_replaced_is_asked_again() -> None:
    engine = Refusing(Unavailable("Try again in a while."))
    with asking(engine, Retries(2)) as client:
        assert [event.result.text for event in client.generate(ASKED)] == ["Done"]


@pytest.mark.parametrize(
    ("engine", "retries", "timeout", "calls"),
    [
        (Refusing(Busy("Full.", 0.1)), Retries(), None, 1),  # nobody asked for retries
        (Refusing(*[Busy("Full.", 0.01)] * 5), Retries(3), None, 3),  # not for ever
        (Refusing(Busy("Full.", 60)), Retries(3, longest_pause=1), None, 1),  # not so long
        (Refusing(Busy("Full.", 60)), Retries(3, longest_pause=100), 50.0, 1),  # it could not be in time
        (Refusing(Unavailable("Gone."), begins=True), Retries(3), None, 1),  # its text was shown already
        (Refusing(NotPossibleHere("Never.")), Retries(3), None, 1),  # it would not help
    ],
)
def test_when_it_is_not_asked_again(engine: Refusing, retries: Retries, timeout: float | None, calls: int) -> None:
    started = time.monotonic()
    with asking(engine, retries) as client, pytest.raises(UserError):
        list(client.generate(ASKED, timeout))
    assert engine.calls == calls and time.monotonic() - started < 40, "it waited"


class LosingStudies(DecodingEngine):
    """Fails after it may have added an image."""

    def __init__(self, error: UserError) -> None:
        super().__init__()
        self.error, self.calls = error, 0

    def prompt_tokens(self, frames: object) -> int:
        self.calls += 1
        raise self.error


@pytest.mark.parametrize(("error", "calls"), [(Unavailable("Gone."), 1), (Busy("Full.", 0.01), 3)])
def test_a_study_is_changed_again_only_where_the_server_says_that_nothing_happened(
    error: UserError, calls: int
) -> None:
    engine = LosingStudies(error)
    with asking(engine, Retries(3)) as client:
        study = client.begin_study()
        with pytest.raises(UserError):
            client.add_image(study, ImageInput(png(8, 8)))
    assert engine.calls == calls


def test_a_timeout_covers_a_server_that_is_not_there() -> None:
    started = time.monotonic()
    with Connection("127.0.0.1:9", retries=Retries(100)) as client, pytest.raises(ServerUnavailable):
        client.model_info(timeout=0.6)
    assert 0.1 < time.monotonic() - started < 40, "it tried all 100 times"
