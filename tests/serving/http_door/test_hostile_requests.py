"""Requests that mean harm: too large, too slow, malformed, from a browser's page, or with a token in the URL. Nobody else notices."""

from __future__ import annotations

import json
import socket
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from echovlm_edge.runtime.serving.access.clients import ClientsFile
from echovlm_edge.runtime.serving.http.chat import json_body
from echovlm_edge.runtime.serving.http.chat.body import UNSUPPORTED, chat_body
from echovlm_edge.runtime.serving.http.chat.json_body import read_json
from echovlm_edge.runtime.serving.http.chat.request import chat_request
from echovlm_edge.runtime.serving.http.exchange.refusals import Refused
from echovlm_edge.runtime.serving.messages import CallLimits
from echovlm_edge.runtime.serving.transport.receiving import ReceivingLimits
from echovlm_edge.runtime.serving.transport.receiving_files import FileReceivingLimits
from echovlm_edge.runtime.serving.transport.server import ReportServer
from echovlm_edge.runtime.serving.uploads import UploadLimits
from tests.support.client_process import memory_during
from tests.support.clients_file import clients_file
from tests.support.decoding_engine import DecodingEngine
from tests.support.dicom_files import png
from tests.support.http_door import OPTIONS, data_uri, http_server, pictured, raw
from tests.support.waiting import wait_for

QUESTION: dict[str, Any] = {"model": "decoding", "messages": [{"role": "user", "content": "Why?"}]}
CHAT, REPORTS = "/v1/chat/completions", "/v1/reports"
GIGABYTE = 1 << 30

# Sends megabytes in chunks, and prints how many until the server had enough.
ENDLESS = """
import socket, sys
import tracemalloc
host, _, port = sys.argv[1].rpartition(":")
sent = 0
try:
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall({begun!r})
        for sent in range(1024):
            connection.sendall(b"100000\\r\\n" + b" " * 0x100000 + b"\\r\\n")
except OSError:
    pass
print(sent)
"""

Served = tuple[ReportServer, httpx.Client]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    small = replace(
        OPTIONS, limits=CallLimits(message_bytes=4 << 20), uploads=UploadLimits(8 << 20, max_file_bytes=4 << 20)
    )
    with http_server(DecodingEngine(), small) as served:
        yield served


@pytest.fixture(autouse=True)
def others_are_answered(served: Served) -> Iterator[None]:
    yield
    server, client = served
    assert client.post(CHAT, json=QUESTION).status_code == 200
    wait_for(lambda: server.admission.inside == 0 and server.calls_in_flight == 0)


def refusal(response: httpx.Response, status: int, code: str) -> str:
    """Check an error's form; returns its sentence."""
    error = response.json()["error"]
    assert response.status_code == status, error
    assert set(error) == {"message", "type", "param", "code"} and error["code"] == code
    assert response.headers["x-content-type-options"] == "nosniff"
    return str(error["message"])


def head(path: str, *lines: str, method: str = "POST", kind: str = "application/json") -> bytes:
    return "\r\n".join(
        [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Type: {kind}", *lines, "", ""]
    ).encode()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (CHAT, "application/json"),
        (REPORTS, "multipart/form-data; boundary=b"),
        ("/v1/pictures", "multipart/form-data; boundary=b"),
    ],
)
def test_a_stated_gigabyte_is_not_read(served: Served, path: str, kind: str) -> None:
    server, _ = served
    answer = raw(server.http_address, head(path, f"Content-Length: {GIGABYTE}", kind=kind))
    assert answer.startswith(b"HTTP/1.1 413 ") and b"request_too_large" in answer


@pytest.mark.parametrize(("path", "kind"), [(CHAT, "application/json"), (REPORTS, "multipart/form-data; boundary=b")])
def test_chunks_without_end_are_counted_as_they_come(served: Served, path: str, kind: str) -> None:
    server, _ = served
    beginning = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n' if path == REPORTS else b"{"
    begun = head(path, "Transfer-Encoding: chunked", kind=kind) + b"%x\r\n%b\r\n" % (len(beginning), beginning)
    sent, grown = memory_during(ENDLESS.format(begun=begun), server.http_address)
    assert int(sent) < 256 and grown < 100 << 20


def test_a_slow_body_is_given_up() -> None:
    limits = replace(
        OPTIONS.transport,
        receiving=ReceivingLimits(seconds=0.2),
        receiving_files=FileReceivingLimits(seconds=0.2),
    )
    form = 'multipart/form-data; boundary="b"'
    with http_server(DecodingEngine(), replace(OPTIONS, transport=limits)) as (server, _):
        for path, kind, begun in ((CHAT, "application/json", b"{"), (REPORTS, form, b"--b")):
            answer = raw(server.http_address, head(path, "Content-Length: 100", kind=kind) + begun)
            assert answer.startswith(b"HTTP/1.1 408 "), answer
        wait_for(lambda: server.calls_in_flight == 0)


def test_a_slow_head_is_given_up_first_or_second() -> None:
    limits = replace(OPTIONS.transport, handshake_seconds=0.2)
    with http_server(DecodingEngine(), replace(OPTIONS, transport=limits)) as (server, _):
        assert raw(server.http_address, b"") == b""
        assert raw(server.http_address, b"GET /health HTTP/1.1\r\nHost") == b""
        whole = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        assert raw(server.http_address, whole + whole[:-3]).count(b"HTTP/1.1 200 ") == 1


def test_connections_are_bounded() -> None:
    limits = replace(OPTIONS.transport, connections=4, idle_seconds=1.0)
    with http_server(DecodingEngine(), replace(OPTIONS, transport=limits)) as (server, _), ExitStack() as opened:
        host, _, port = server.http_address.rpartition(":")
        for _ in range(4):
            opened.enter_context(socket.create_connection((host, int(port)))).sendall(b"GET")
        assert raw(server.http_address, b"") == b""
        opened.close()
        wait_for(lambda: reachable(server))


def reachable(server: ReportServer) -> bool:
    try:
        return httpx.get(f"http://{server.http_address}/health").status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.parametrize("path", [CHAT, REPORTS, "/v1/models", "/health"])
def test_tokens_and_all_else_in_the_url_are_refused(served: Served, path: str) -> None:
    _, client = served
    method = "POST" if path in (CHAT, REPORTS) else "GET"
    sentence = refusal(client.request(method, f"{path}?access_token=secret"), 400, "query_not_allowed")
    assert "header Authorization" in sentence and "secret" not in sentence


@pytest.mark.parametrize(
    "path",
    [
        *("//", "//v1/models", "/v1/models/", "/v1/../health", "/v1/%2e%2e/health", "/v1/models/%00", "/V1/models"),
        *("/metrics", "/v1", "/v1/completions", "/v1/embeddings", "/..%2f..%2fetc/passwd", "/health/live/", "*"),
    ],
)
def test_no_trick_in_a_path_leads_anywhere(served: Served, path: str) -> None:
    server, _ = served
    answer = raw(server.http_address, head(path, "Connection: close", method="GET"))
    assert answer.startswith(b"HTTP/1.1 404 ") and b'"error"' in answer


def test_absolute_targets_and_other_methods_are_refused(served: Served) -> None:
    server, client = served
    assert raw(server.http_address, head("http://localhost/health", "Connection: close", method="GET")).startswith(
        b"HTTP/1.1 404 "
    )
    for method in ("GET", "PUT", "DELETE", "OPTIONS", "HEAD", "BREW"):
        response = client.request(method, CHAT)
        assert response.status_code == 405 and response.headers["allow"] == "POST"
        assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://{host}", "http://{host}.evil.example", ""])
def test_pages_of_other_origins_are_refused(served: Served, origin: str) -> None:
    server, client = served
    origin = origin.format(host=server.http_address)
    refusal(client.post(CHAT, json=QUESTION, headers={"Origin": origin}), 403, "foreign_origin")
    refusal(client.request("OPTIONS", CHAT, headers={"Origin": origin}), 403, "foreign_origin")
    own = client.post(CHAT, json=QUESTION, headers={"Origin": f"http://{server.http_address}"})
    assert own.status_code == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "x/json"]
)
def test_another_content_type_is_refused(served: Served, kind: str) -> None:
    _, client = served
    response = client.post(CHAT, content=json.dumps(QUESTION), headers={"Content-Type": kind})
    refusal(response, 415, "wrong_content_type")


def test_compressed_bodies_are_refused(served: Served) -> None:
    _, client = served
    refusal(client.post(CHAT, json=QUESTION, headers={"Content-Encoding": "gzip"}), 415, "compressed")


@pytest.mark.parametrize(
    "head_lines",
    [
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 100_000,
        b"GET /health HTTP/1.1\r\n bad: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    ],
)
def test_what_is_no_http_ends_its_connection_alone(served: Served, head_lines: bytes) -> None:
    server, _ = served
    answer = raw(server.http_address, head_lines)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 421 "))


def test_a_stranger_s_body_is_not_read(tmp_path: Path) -> None:
    access = ClientsFile(clients_file(tmp_path, {"cart": {"token": "secret"}}))
    with http_server(DecodingEngine(), access=access) as (server, client):
        for path in (CHAT, REPORTS):
            answer = raw(server.http_address, head(path, "Content-Length: 1000000"))
            assert answer.startswith(b"HTTP/1.1 401 ") and b"www-authenticate: Bearer" in answer
        assert client.get("/health").status_code == 200


def test_half_open_requests_hold_nobody_up(served: Served) -> None:
    server, client = served
    host, _, port = server.http_address.rpartition(":")
    with ExitStack() as opened:
        for _ in range(40):
            connection = opened.enter_context(socket.create_connection((host, int(port))))
            connection.sendall(head(CHAT, "Content-Length: 100") + b"{")
        answer = client.post(CHAT, json=QUESTION)
        assert answer.status_code == 200, answer.text


def test_a_body_of_many_small_values_is_refused_before_it_is_parsed(served: Served) -> None:
    _, client = served
    many = json.dumps(QUESTION | {"metadata": [{}] * 500_000})
    sentence = refusal(
        client.post(CHAT, content=many, headers={"Content-Type": "application/json"}), 413, "request_too_large"
    )
    assert "besides its data URIs" in sentence
    deep = b'{"messages": ' + b"[" * 100_000
    refusal(client.post(CHAT, content=deep, headers={"Content-Type": "application/json"}), 400, "invalid_json")


@pytest.mark.parametrize(
    "url",
    [
        *("https://example.com/a.png", "file:///etc/passwd", "http://169.254.169.254/latest", "", "image.png"),
        *("data:", "data:,text", "data:image/png,abc", "data:image/png;base64,", "data:image/png;base64,@@@@"),
        *("data:image/png;base64,AAA", "data:image/png;charset=utf-8;base64,AAAA", "DATA:image/png;base64,AAAA"),
    ],
)
def test_a_picture_is_a_data_uri_or_is_refused(served: Served, url: str) -> None:
    _, client = served
    response = client.post(CHAT, json=QUESTION | {"messages": [{"role": "user", "content": pictured("Why?", url)}]})
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == "messages[0].content[1].image_url.url"
    assert "data:image/png;base64," in error["message"] or "file's bytes" in error["message"]


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ([{"role": "system", "content": "Be brief."}], "messages"),
        ([{"role": "assistant", "content": "Hello"}], "messages[0].role"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "messages[1].role"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "messages"),
        ([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}], "messages[1].role"),
        ([{"role": "user", "content": " "}], "messages[0].content"),
        ([{"role": "tool", "content": "a"}], "messages[0].role"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": "a", "name": "x"}], "messages[0].name"),
        ([{"role": "system", "content": pictured("a", "data:image/png;base64,AAAA")}, {"role": "user", "content": "a"}],
         "messages[0].content[1].type"),
    ],
)  # fmt: skip
def test_messages_that_are_no_conversation_are_refused_by_their_place(
    served: Served, messages: list[Any], param: str
) -> None:
    _, client = served
    response = client.post(CHAT, json=QUESTION | {"messages": messages})
    assert response.status_code == 400 and response.json()["error"]["param"] == param, response.text


KEYS = st.sampled_from(
    [*UNSUPPORTED, "model", "messages", "stream", "n", "stop", "seed", "max_tokens", "temperature", "top_p"]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "file"]) | VALUES},
    optional={
        "text": SCALARS,
        "image_url": st.fixed_dictionaries({"url": st.sampled_from([data_uri(b"x"), "data:", "a"]) | VALUES}),
    },
)
MESSAGES = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "user", "assistant"]) | VALUES,
        "content": st.text(max_size=20) | st.lists(PARTS, max_size=3),
    }
)
BODIES = st.dictionaries(KEYS | st.text(max_size=10), VALUES, max_size=4).flatmap(
    lambda more: st.fixed_dictionaries({"model": st.just("decoding"), "messages": st.lists(MESSAGES, max_size=4)}).map(
        lambda body: {**body, **more}
    )
)
HYPOTHESIS = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@HYPOTHESIS
@given(body=BODIES)
@example(body={"model": "decoding", "messages": [{"role": "user", "content": "\ud800"}]})
@example(body={"model": "decoding", "messages": [{"role": "user", "content": "data: a"}], "seed": -1})
@example(body={"model": "decoding", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2**40})
@example(body={"model": "data:x", "messages": []})
def test_no_json_is_a_fault(served: Served, body: dict[str, Any]) -> None:
    _, client = served
    response = client.post(CHAT, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        assert response.json()["error"]["message"]


@HYPOTHESIS
@given(
    data=st.binary(max_size=200) | st.text(max_size=100).map(lambda text: b'{"a": "' + text.encode(errors="replace"))
)
def test_no_bytes_are_a_fault(served: Served, data: bytes) -> None:
    _, client = served
    response = client.post(CHAT, content=data, headers={"Content-Type": "application/json"})
    assert response.status_code == 400 and response.json()["error"]["message"]


TEXTS = st.text() | st.text().map("data:".__add__)
TREES = st.recursive(
    st.none() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@HYPOTHESIS
@given(value=TREES, ascii=st.booleans())
def test_cutting_data_uris_out_changes_nothing(value: object, ascii: bool) -> None:
    def back(read: Any) -> Any:
        if isinstance(read, json_body.DataUri):
            return read.text
        if isinstance(read, dict):
            return {key: back(inner) for key, inner in read.items()}
        return [back(inner) for inner in read] if isinstance(read, list) else read

    written = json.dumps({"": value}, ensure_ascii=ascii).encode().replace(b"/", rb"\/" if ascii else b"/")
    assert back(read_json(written)) == {"": value}


def test_the_pictures_are_those_that_were_sent() -> None:
    files = [png(8, 8, seed) for seed in range(3)]
    content = pictured("Look.", *map(data_uri, files))
    asked = chat_request(
        read_json(json.dumps(QUESTION | {"messages": [{"role": "user", "content": content}]}).encode())
    )
    assert [image.data for image in asked.question.images] == files
    assert {image.media_type for image in asked.question.images} == {"image/png"}


@pytest.mark.parametrize(
    "messages",
    [
        [{}] * 300_000,
        [{"role": "user", "content": [{}] * 300_000}],
        [{"role": "user", "content": [7] * 300_000}],
        [{"role": "user", "content": [{"type": "text", "text": "x", "more": 1}] * 20_000}],
    ],
)
def test_a_megabyte_of_mistakes_is_one_error(messages: list[Any]) -> None:
    """Half a million errors took seconds in which no other thread ran, and 600 MB."""
    tracemalloc.start()
    try:
        with pytest.raises(Refused):
            chat_body({"model": "m", "messages": messages})
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()


def test_an_object_of_very_many_members_is_refused() -> None:
    with pytest.raises(Refused, match="more than 256 members"):
        read_json(json.dumps({"model": "m", "messages": [{str(number): 1 for number in range(257)}]}).encode())


def test_a_long_text_that_begins_as_a_data_uri_is_no_way_around_the_bound() -> None:
    asked = read_json(
        json.dumps(QUESTION | {"messages": [{"role": "user", "content": "data:" + "x" * (1 << 20)}]}).encode()
    )
    with pytest.raises(Refused, match="at most"):
        chat_body(asked)


def test_too_many_data_uris_are_refused() -> None:
    with pytest.raises(Refused, match="more than 1,024 data URIs"):
        read_json(json.dumps({"a": ["data:"] * 1025}).encode())


def test_strangers_of_one_address_do_not_stop_others(served: Served) -> None:
    _, client = served
    threads = [threading.Thread(target=lambda: client.get("/health")) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
