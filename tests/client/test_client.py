"""The client: what it refuses before sending, and how it words what the server or the network refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.client.wire.requests import ReportRequest
from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere, ServerUnavailable
from echovlm_edge.runtime.contracts.request import (
    FrameSelection,
    ImageInput,
    Sampling,
)
from echovlm_edge.runtime.contracts.tasks import Task
from echovlm_edge.runtime.serving.messages import CallLimits
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions
from tests.support.decoding_engine import DecodingEngine
from tests.support.dicom_files import png

PICTURE = png(64, 64)


@pytest.fixture
def engine() -> DecodingEngine:
    return DecodingEngine()


@pytest.fixture
def client(engine: DecodingEngine) -> Iterator[Connection]:
    server = ReportServer(engine, ServerOptions("127.0.0.1:0", limits=CallLimits(1 << 20)))
    with Connection(server.address) as client:
        client.wait_until_ready(5)
        yield client
    server.stop()


def test_an_error_names_the_users_file_not_its_place(client: Connection) -> None:
    # The wrong file is itself called like the place of the other one.
    images = [ImageInput(PICTURE, name="a.png"), ImageInput(b"text", name="image 1.png")]
    with pytest.raises(InvalidInput, match=r"^image 1\.png is of no known kind"):
        list(client.generate(ReportRequest(images=images)))


def test_the_tenth_image_is_not_taken_for_the_first(client: Connection) -> None:
    images = [ImageInput(PICTURE, name=f"{letter}.png") for letter in "abcdefghi"] + [ImageInput(b"text", name="j.png")]
    with pytest.raises(InvalidInput, match=r"^j\.png is of no known kind"):
        list(client.generate(ReportRequest(images=images)))


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (ReportRequest(images=[ImageInput(PICTURE)], sampling=Sampling(seed=-1)), "seed must be between 0 and"),
        (ReportRequest(images=[ImageInput(PICTURE)], sampling=Sampling(seed=1 << 64)), "seed must be between 0 and"),
        (ReportRequest(images=[ImageInput(PICTURE)], sampling=Sampling(1 << 32)), "max_new_tokens must be between"),
        (ReportRequest(images=[ImageInput(PICTURE)], sampling=Sampling(top_k=1 << 32)), "top_k must be between"),
        (ReportRequest(images=[ImageInput(PICTURE, selection=FrameSelection((0, -1)))]), "frame must be .* got -1"),
        (ReportRequest(images=[ImageInput(PICTURE, selection=FrameSelection((), -2))]), "frames_spaced must be .* -2"),
    ],
)
def test_a_number_out_of_range_is_one_sentence(
    request_: ReportRequest, sentence: str, client: Connection, engine: DecodingEngine
) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        list(client.generate(request_))
    assert engine.requests == [], "it was sent all the same"


def test_what_is_asked_arrives(client: Connection, engine: DecodingEngine) -> None:
    sampling = Sampling(7, 0.5, 3, 0.75, 1.25, (1 << 64) - 1)
    image = ImageInput(PICTURE, "image/png", "a.png", FrameSelection(), crop_to_regions=False)
    (event,) = client.generate(ReportRequest(Task.QUESTION, [image], "Wo?", sampling=sampling, include_token_ids=True))
    assert list(event.result.token_ids) == [1]
    (asked,) = engine.requests
    assert (asked.prompt, asked.sampling) == ("Wo?", sampling)
    assert asked.images == (ImageInput(PICTURE, "image/png", "image 1", FrameSelection(), crop_to_regions=False),)


def test_words_that_are_too_large_say_what_to_do(client: Connection) -> None:
    with pytest.raises(NotPossibleHere, match=r"too large for the server .* --max-message-mb"):
        list(client.generate(ReportRequest(images=[ImageInput(PICTURE)], prompt="?" * (2 << 20))))


def test_readiness_of_a_server_that_is_not_there() -> None:
    with Connection("127.0.0.1:9") as client, pytest.raises(ServerUnavailable, match=r"No server listens at 127\.0"):
        client.wait_until_ready(0.2)
