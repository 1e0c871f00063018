"""What the server can never do is refused at once, by the field and with the most that it can do; nothing of it is begun."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from echovlm_edge.runtime.serving.access.clients import ClientsFile
from tests.support.clients_file import clients_file
from tests.support.decoding_engine import DecodingEngine
from tests.support.dicom_files import png
from tests.support.http_door import OPTIONS, data_uri, http_server, pictured

QUESTION: dict[str, Any] = {"model": "decoding", "messages": [{"role": "user", "content": "Why?"}]}
CHAT = "/v1/chat/completions"
CONTEXT = DecodingEngine.info.max_sequence


def refused(answer: httpx.Response, param: str, words: str) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_value", param)
    assert words in error["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("places", "more", "choices", "most"),
    [(3, {}, 4, "3 of your calls"), (6, {"priority": "batch"}, 4, "3 of your batch calls")],
)
def test_more_choices_than_places(places: int, more: dict[str, Any], choices: int, most: str, stream: bool) -> None:
    engine = DecodingEngine()
    with http_server(engine, replace(OPTIONS, slots=1, queue=places - 1)) as (_, client):
        asked = QUESTION | more | {"stream": stream}
        refused(client.post(CHAT, json=asked | {"n": choices}), "n", most)
        assert not engine.requests, "nothing was begun"
        assert client.post(CHAT, json=asked | {"n": choices - 1}).status_code == 200


def test_more_choices_than_a_client_may_have(tmp_path: Path) -> None:
    few, many = {"token": "few", "max_calls": 2}, {"token": "many"}
    access = ClientsFile(clients_file(tmp_path, {"few": few, "many": many}))
    with http_server(DecodingEngine(), replace(OPTIONS, slots=4, queue=4), access=access) as (_, client):
        for token, most in (("few", 2), ("many", 6)):
            headers = {"Authorization": f"Bearer {token}"}
            answer = client.post(CHAT, json=QUESTION | {"n": most + 1}, headers=headers)
            refused(answer, "n", f"{most} of your calls")
            assert client.post(CHAT, json=QUESTION | {"n": most}, headers=headers).status_code == 200


def test_more_choices_than_their_requests_have_memory_for() -> None:
    picture = png(200, 200)
    asked = QUESTION | {"messages": [{"role": "user", "content": pictured("Why?", data_uri(picture))}]}
    with http_server(DecodingEngine(), replace(OPTIONS, request_bytes=5 * len(picture) // 2)) as (_, client):
        refused(client.post(CHAT, json=asked | {"n": 3}), "n", "2 of your calls with such a request")
        assert client.post(CHAT, json=asked | {"n": 2}).status_code == 200


@pytest.mark.parametrize("field", ["max_completion_tokens", "max_tokens"])
def test_more_tokens_than_the_context(field: str) -> None:
    with http_server(DecodingEngine()) as (_, client):
        refused(client.post(CHAT, json=QUESTION | {field: CONTEXT + 1}), field, f"have {CONTEXT} tokens together")
        assert client.post(CHAT, json=QUESTION | {field: CONTEXT}).status_code == 200


def test_more_tokens_of_a_report_than_the_context() -> None:
    with http_server(DecodingEngine()) as (_, client):
        field = {"max_completion_tokens": str(CONTEXT + 1)}
        answer = client.post("/v1/reports", files={"file": png(64, 64)}, data=field)
        refused(answer, "max_completion_tokens", f"have {CONTEXT} tokens together")


def test_best_of_is_refused_by_name() -> None:
    with http_server(DecodingEngine()) as (_, client):
        error = client.post(CHAT, json=QUESTION | {"best_of": 2}).json()["error"]
        assert error["code"] == "unsupported_parameter" and "use n" in error["message"]
        assert client.post(CHAT, json=QUESTION | {"best_of": 1}).status_code == 200
