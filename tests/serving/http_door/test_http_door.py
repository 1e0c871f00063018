"""The HTTP door itself: health, drain, certificates, quotas, disconnects, logs and metrics, as gRPC's calls have them."""

from __future__ import annotations

import json
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from echovlm.v1 import report_pb2 as pb
from echovlm.v1 import report_pb2_grpc
from echovlm_edge.runtime.contracts.errors import NotPossibleHere, UnusableNumbers
from echovlm_edge.runtime.contracts.request import (
    Event,
    Finished,
    FinishReason,
    GenerationRequest,
    Stage,
    StageStarted,
    TextDelta,
)
from echovlm_edge.runtime.observability.ended_call import EndedCall
from echovlm_edge.runtime.serving.access.clients import ClientsFile
from echovlm_edge.runtime.serving.access.tls import TlsFiles
from echovlm_edge.runtime.serving.http.exchange.door_options import HttpOptions
from echovlm_edge.runtime.serving.transport.server import ReportServer
from tests.support.authority import Authority
from tests.support.clients_file import clients_file
from tests.support.decoding_engine import DecodingEngine
from tests.support.http_door import HTTP, OPTIONS, http_server
from tests.support.waiting import wait_for

QUESTION: dict[str, Any] = {"model": "decoding", "messages": [{"role": "user", "content": "Why?"}]}
CHAT = "/v1/chat/completions"


class WaitingEngine(DecodingEngine):
    """Writes a word, and waits until the test lets it go on or the caller is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.running, self.go = threading.Semaphore(0), threading.Event()
        self.stopped = 0

    def generate(self, request: GenerationRequest, stopped: Callable[[], bool]) -> Iterator[Event]:
        yield StageStarted(Stage.PREFILL)
        self.running.release()
        yield TextDelta("Done")
        while not self.go.wait(0.01):
            if stopped():
                self.stopped += 1
                yield Finished("Done", (1,), FinishReason.CANCELLED, 1, 0, {}, None)
                return
        yield Finished("Done", (1,), FinishReason.STOP, 1, 0, {}, None)


def in_background(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_calls_of_both_doors_share_the_places() -> None:
    engine = WaitingEngine()
    with http_server(engine, replace(OPTIONS, slots=1, queue=0)) as (server, client):
        answered: list[httpx.Response] = []
        asking = in_background(lambda: answered.append(client.post(CHAT, json=QUESTION)))
        engine.running.acquire()
        with grpc.insecure_channel(server.address) as channel:
            stub = report_pb2_grpc.ReportServiceStub(channel)
            with pytest.raises(grpc.RpcError) as refused:
                list(stub.AnswerQuestion(pb.AnswerQuestionRequest(question="Why?")))
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        busy = client.post(CHAT, json=QUESTION)
        assert busy.status_code == 429 and busy.json()["error"]["type"] == "rate_limit_error"
        assert busy.json()["error"]["code"] == "busy" and int(busy.headers["retry-after"]) >= 1
        engine.go.set()
        asking.join(30)
        assert answered[0].json()["choices"][0]["message"]["content"] == "Done"


def test_a_client_s_quota_counts_each_choice(tmp_path: Path) -> None:
    access = ClientsFile(clients_file(tmp_path, {"harness": {"token": "secret", "max_calls": 2}}))
    engine = WaitingEngine()
    with http_server(engine, access=access) as (server, client):
        headers = {"Authorization": "Bearer secret"}
        asking = in_background(lambda: client.post(CHAT, json=QUESTION, headers=headers))
        engine.running.acquire()
        refused = client.post(CHAT, json=QUESTION | {"n": 2}, headers=headers)
        assert refused.status_code == 429 and "the maximum for your client" in refused.json()["error"]["message"]
        engine.go.set()
        asking.join(30)
        wait_for(lambda: server.admission.inside == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_its_calls(stream: bool) -> None:
    engine, ended = WaitingEngine(), list[EndedCall]()
    server = ReportServer(engine, OPTIONS, observers=[ended.append])
    try:
        with (
            httpx.Client(base_url=f"http://{server.http_address}", timeout=30) as client,
            client.stream("POST", CHAT, json=QUESTION | {"n": 2, "stream": True}) if stream else leaving(client),
        ):
            engine.running.acquire()
            engine.running.acquire()
        wait_for(lambda: server.admission.inside == 0 and len(ended) == 2)
        assert {(call.outcome, call.door) for call in ended} == {("cancelled", "http")}
        assert engine.stopped == 2
    finally:
        server.stop()


class leaving:  # noqa: N801
    """A request whose client closes the connection at the end of the context, without its answer."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = httpx.Client(base_url=client.base_url, timeout=30)

    def __enter__(self) -> None:
        body = json.dumps(QUESTION | {"n": 2}).encode()
        host, port = self._client.base_url.host, self._client.base_url.port
        self._socket = socket.create_connection((host, port or 80))
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._socket.sendall(head.encode() + body)

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._client.close()


def test_a_stop_says_so_finishes_what_runs_and_ends() -> None:
    engine = WaitingEngine()
    with http_server(engine, replace(OPTIONS, grace_seconds=30)) as (server, client):
        answered: list[httpx.Response] = []
        asking = in_background(lambda: answered.append(client.post(CHAT, json=QUESTION)))
        engine.running.acquire()
        assert client.get("/health").json() == {"status": "serving"}
        stopping = in_background(server.stop)
        wait_for(lambda: client.get("/health").status_code == 503)
        assert client.get("/health/live").status_code == 200
        refused = client.post(CHAT, json=QUESTION)
        assert refused.status_code == 503 and refused.json()["error"]["type"] == "server_error"
        engine.go.set()
        asking.join(30)
        stopping.join(30)
        assert answered[0].status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://{server.http_address}/health")


def test_a_stop_cuts_what_does_not_end_within_the_grace() -> None:
    engine = WaitingEngine()
    with http_server(engine, replace(OPTIONS, grace_seconds=0.2)) as (server, client):
        failed: list[Exception] = []

        def ask() -> None:
            try:
                client.post(CHAT, json=QUESTION).raise_for_status()
            except httpx.HTTPError as error:
                failed.append(error)

        asking = in_background(ask)
        engine.running.acquire()
        server.stop()
        asking.join(30)
        assert failed


def test_a_failure_in_a_stream_is_an_event_and_one_before_it_a_status() -> None:
    class Failing(DecodingEngine):
        def generate(self, request: GenerationRequest, stopped: Callable[[], bool]) -> Iterator[Event]:
            yield StageStarted(Stage.DECODE_IMAGES)
            if request.prompt == "Now":
                raise UnusableNumbers
            yield StageStarted(Stage.PREFILL)
            yield TextDelta("A ")
            raise UnusableNumbers

    with http_server(Failing()) as (_, client):
        asked = QUESTION | {"stream": True}
        lines = client.post(CHAT, json=asked).text.splitlines()
        error = json.loads(lines[-2].removeprefix("data: "))["error"]
        assert error["type"] == "server_error" and "no usable numbers" in error["message"]
        early = client.post(CHAT, json=asked | {"messages": [{"role": "user", "content": "Now"}]})
        assert early.status_code == 500 and early.json()["error"]["message"] == error["message"]


def test_calls_are_logged_with_their_id_and_door(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with http_server(DecodingEngine()) as (_, client):
        answer = client.post(CHAT, json=QUESTION)
    (line,) = [record for record in caplog.records if record.message == "call"]
    fields = vars(line)
    assert (fields["door"], fields["method"], fields["outcome"]) == ("http", "AnswerQuestion", "ok")
    assert fields["request_id"] == answer.headers["x-request-id"] and answer.json()["id"].endswith(fields["request_id"])


def test_certificates_guard_this_door_too_and_are_followed(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server", "127.0.0.1")
    own, own_key = authority.issue("client", "workstation.example")
    access = ClientsFile(clients_file(tmp_path, {"workstation": {"certificate": "workstation.example"}}))
    options = replace(OPTIONS, tls=TlsFiles(certificate, key, authority.ca_file))

    def context(with_certificate: bool = True) -> ssl.SSLContext:
        made = ssl.create_default_context(cafile=str(authority.ca_file))
        if with_certificate:
            made.load_cert_chain(own, own_key)
        return made

    with http_server(DecodingEngine(), options, access) as (server, _):
        url = f"https://{server.http_address}"
        with httpx.Client(verify=context()) as known:
            assert known.get(f"{url}/v1/models").status_code == 200
        with httpx.Client(verify=context(False)) as stranger, pytest.raises(httpx.HTTPError):
            stranger.get(f"{url}/health")
        before = _serial(server.http_address, context())
        renewed, renewed_key = authority.issue("renewed", "127.0.0.1")
        key.write_bytes(renewed_key.read_bytes())
        certificate.write_bytes(renewed.read_bytes())
        wait_for(lambda: _serial(server.http_address, context()) != before)


def _serial(address: str, context: ssl.SSLContext) -> object:
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port))) as plain,
        context.wrap_socket(plain, server_hostname=host) as secured,
    ):
        found = secured.getpeercert() or {}
    return found["serialNumber"]


def test_an_address_in_use_is_refused_by_the_option_s_name() -> None:
    with http_server(DecodingEngine()) as (server, _), pytest.raises(NotPossibleHere, match="--http HOST:PORT"):
        ReportServer(DecodingEngine(), replace(OPTIONS, http=HttpOptions(server.http_address)))


def test_names_are_taken_that_the_operator_gave() -> None:
    options = replace(OPTIONS, http=replace(HTTP, names=("echovlm.example",)))
    with http_server(DecodingEngine(), options) as (_, client):
        statuses = {
            host: client.get("/health", headers={"Host": host}).status_code
            for host in (
                "echovlm.example",
                "ECHOVLM.example:80",
                "localhost",
                "10.1.2.3",
                "[::1]:8",
                "rebound.example",
                "",
            )
        }
    assert statuses == {
        "echovlm.example": 200,
        "ECHOVLM.example:80": 200,
        "localhost": 200,
        "10.1.2.3": 200,
        "[::1]:8": 200,
        "rebound.example": 421,
        "": 421,
    }


def test_a_slow_reader_gives_its_place_back() -> None:
    class Endless(DecodingEngine):
        def generate(self, request: GenerationRequest, stopped: Callable[[], bool]) -> Iterator[Event]:
            while not stopped():
                yield TextDelta("word " * 10_000)
            yield Finished("word", (1,), FinishReason.CANCELLED, 1, 0, {}, None)

    limits = replace(OPTIONS.transport, delivery_seconds=0.5)
    with http_server(Endless(), replace(OPTIONS, transport=limits)) as (server, client):
        with client.stream("POST", CHAT, json=QUESTION | {"stream": True}):
            wait_for(lambda: server.admission.inside == 1)
            wait_for(lambda: server.admission.inside == 0)
        assert client.get("/health").status_code == 200


def test_an_unknown_path_is_answered_with_those_there_are() -> None:
    with http_server(DecodingEngine()) as (_, client):
        sentence = client.get("/v1/embeddings").json()["error"]["message"]
        assert "/v1/models, /v1/models/{model}, /v1/chat/completions" in sentence and ":path" not in sentence
