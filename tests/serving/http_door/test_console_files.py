"""The console's own files, what it asks first, and the service's state: what a stranger gets, and what a page may do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.serving.access.clients import ClientsFile
from echovlm_edge.runtime.serving.http.console.page_files import page_files
from echovlm_edge.runtime.serving.http.console.study_folder import read_study
from echovlm_edge.runtime.serving.http.exchange.door_options import HttpOptions
from echovlm_edge.runtime.serving.transport.server import ReportServer
from tests.support.clients_file import clients_file
from tests.support.decoding_engine import DecodingEngine
from tests.support.dicom_files import png
from tests.support.http_door import HTTP, OPTIONS, http_server, raw
from tests.support.waiting import wait_for

Served = tuple[ReportServer, httpx.Client]
FILES = [file.path for file in page_files()]
QUESTION: dict[str, Any] = {"model": "decoding", "messages": [{"role": "user", "content": "Why?"}]}
CHAT, SERVICE, SESSION = "/v1/chat/completions", "/v1/service", "/console/session"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    (folder / "b.png").write_bytes(png(80, 60, 2))
    (folder / "a.png").write_bytes(png(80, 60, 1))
    (folder / "truth.json").write_text("[]")
    return folder


@pytest.fixture(scope="module")
def served(study: Path) -> Iterator[Served]:
    with http_server(DecodingEngine(), replace(OPTIONS, http=replace(HTTP, study=read_study(study)))) as served:
        yield served


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    clients = {
        "cart": {"token": "secret"},
        "other": {"token": "other"},
        "desk": {"token": "desk", "operator": True},
    }
    access = ClientsFile(clients_file(tmp_path_factory.mktemp("clients"), clients))
    with http_server(DecodingEngine(), access=access) as served:
        yield served


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("path", FILES)
def test_every_file_may_do_nothing_but_call_its_own_server(served: Served, path: str) -> None:
    _, client = served
    answer = client.get(path)
    assert answer.status_code == 200 and answer.content
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["referrer-policy"] == "no-referrer"
    assert "set-cookie" not in answer.headers and "access-control-allow-origin" not in answer.headers
    assert answer.headers["content-type"].partition(";")[0] in (
        "text/html",
        "text/css",
        "text/javascript",
        "image/svg+xml",
    )


def test_a_file_is_sent_once(served: Served) -> None:
    _, client = served
    for path in FILES:
        first = client.get(path)
        again = client.get(path, headers={"If-None-Match": first.headers["etag"]})
        assert again.status_code == 304 and again.content == b"" and again.headers["etag"] == first.headers["etag"]
        assert "no-cache" in first.headers["cache-control"]
        assert client.get(path, headers={"If-None-Match": '"else", W/"x"'}).status_code == 200
    head = client.head("/")
    assert head.status_code == 200 and head.content == b"" and int(head.headers["content-length"]) > 0


@pytest.mark.parametrize("path", ["/", FILES[-1], SESSION, SERVICE])
def test_other_methods_queries_and_origins_are_refused(served: Served, path: str) -> None:
    server, client = served
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "BREW"):
        refused = client.request(method, path)
        assert refused.status_code == 405 and "GET" in refused.headers["allow"]
    assert client.get(f"{path}?token=secret").json()["error"]["code"] == "query_not_allowed"
    assert client.get(path, headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.get(path, headers={"Host": "evil.example"}).status_code == 421
    assert client.get(path, headers={"Origin": f"http://{server.http_address}"}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/index.html", "/console", "/console/", "/console/index.html", "//", "/console//main.js", "/Console/main.js"),
        *("/console/../console/main.js", "/console/%2e%2e/main.js", "/console/..%2f..%2f..%2fetc%2fpasswd"),
        *("/console/%2e%2e%2fpage_files.py", "/console/page_files.py", "/console/main.js/", "/console/main.js%00"),
        *(
            "/console/main.js%2f",
            "/console/..\\main.js",
            "/console/study/",
            "/console/study/../session",
            "/favicon.ico",
        ),
    ],
)
def test_no_trick_in_a_path_leads_to_a_file(served: Served, path: str) -> None:
    server, _ = served
    answer = raw(server.http_address, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404 ") and b"unknown_path" in answer


def test_a_server_without_it_has_none(served: Served) -> None:
    with http_server(DecodingEngine(), replace(OPTIONS, http=HttpOptions("127.0.0.1:0", console=False))) as (_, client):
        for path in ("/", FILES[-1], SESSION):
            assert client.get(path).status_code == 404
        assert client.get(SERVICE).status_code == 200


def test_it_offers_a_study_to_try(served: Served, study: Path, tmp_path: Path) -> None:
    _, client = served
    assert client.get(SESSION).json()["study"] == ["a.png", "b.png"]
    assert client.get("/console/study/2").content == (study / "b.png").read_bytes()
    for number in ("0", "3", "-1", "1.0", "x", "9" * 5000):
        assert client.get(f"/console/study/{number}").status_code == 404
    with pytest.raises(NotPossibleHere, match="no image file"):
        read_study(tmp_path)
    with pytest.raises(NotPossibleHere, match="cannot be read"):
        read_study(tmp_path / "nothing")


def test_strangers_get_the_page_and_nothing_else(guarded: Served, caplog: pytest.LogCaptureFixture) -> None:
    server, client = guarded
    assert client.get("/").status_code == 200
    for headers in ({}, bearer("wrong")):
        assert client.get(SESSION, headers=headers).json() == {"known": False}
        for path in (SERVICE, "/console/study/1", "/v1/models"):
            assert client.get(path, headers=headers).status_code == 401
        # On a connection of its own, as the body is not read.
        url, form = f"http://{server.http_address}/v1/pictures", {"file": png(80, 60)}
        assert httpx.post(url, files=form, headers=headers).status_code == 401
    assert client.get(SESSION, headers=bearer("secret")).json()["known"] is True
    caplog.clear()
    client.get(SESSION)
    assert not caplog.records  # to open the page is no attempt
    client.get(SESSION, headers=bearer("guessed"))
    assert "refused an unknown client" in caplog.text and "guessed" not in caplog.text


def test_a_connection_outlives_refusals(guarded: Served) -> None:
    _, client = guarded
    for _ in range(20):
        for path in (SERVICE, "/v1/models"):  # without a record, and with one
            assert client.get(path, headers=bearer("wrong")).status_code == 401


def test_the_state_says_how_busy_the_service_is(served: Served) -> None:
    _, client = served
    state = client.get(SERVICE).json()
    assert state["serving"] is True and state["model"]["name"] == "decoding"
    assert state["slots"] == {"total": 2, "busy": 1, "waiting": 0, "parked": 0, "parked_bytes": 0}
    assert state["caches"]["prompts"] == {"hits": 1, "misses": 2, "entries": 1, "bytes": 64}
    assert state["places"] == {"total": 40, "taken": 0} and state["clients"] == []


def test_a_client_sees_its_own_errors_and_an_operator_all(guarded: Served) -> None:
    _, client = guarded
    secret = "The patient Jane Doe"
    ids = {}
    for token, name in (("secret", "cart"), ("other", "other")):
        refused = client.post(CHAT, json=QUESTION | {"model": secret}, headers=bearer(token))
        assert refused.status_code == 404
        ids[name] = refused.headers["x-request-id"]

    def errors(token: str) -> list[dict[str, Any]]:
        answer = client.get(SERVICE, headers=bearer(token))
        assert "Jane" not in answer.text
        return list(answer.json()["errors"])

    wait_for(lambda: len(errors("desk")) == 2)
    assert [one["request_id"] for one in errors("secret")] == [ids["cart"]]
    assert [one["client"] for one in errors("desk")] == ["other", "cart"]
    (own,) = errors("other")
    assert set(own) == {"time", "request_id", "method", "outcome", "client", "door"}
    assert (own["method"], own["door"]) == ("AnswerQuestion", "http") and own["outcome"] != "ok"


def test_polling_the_state_is_no_call(served: Served) -> None:
    server, client = served
    answer = client.get(SERVICE)
    assert "x-request-id" not in answer.headers and answer.headers["cache-control"] == "no-store"
    wait_for(lambda: server.calls_in_flight == 0)
