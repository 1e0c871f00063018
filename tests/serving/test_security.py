"""Who gets in and who does not, what is refused before it is decoded, and what the log keeps to itself."""

from __future__ import annotations

import io
import json
import logging
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from echovlm.v1 import report_pb2 as pb
from echovlm.v1 import report_pb2_grpc
from echovlm_edge.runtime.client import report_command
from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.client.wire.credentials import Credentials
from echovlm_edge.runtime.client.wire.requests import ReportRequest
from echovlm_edge.runtime.contracts.errors import NotPossibleHere, ServerUnavailable, Unauthenticated
from echovlm_edge.runtime.contracts.request import Event, Finished, FinishReason, Frame, GenerationRequest
from echovlm_edge.runtime.contracts.tasks import Task
from echovlm_edge.runtime.engine.engine_info import EngineInfo
from echovlm_edge.runtime.observability import logs
from echovlm_edge.runtime.serving.access.clients import ClientsFile
from echovlm_edge.runtime.serving.access.tls import TlsFiles
from echovlm_edge.runtime.serving.messages import CallLimits
from echovlm_edge.runtime.serving.supervision.serve_command import main as serve
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions
from tests.support.authority import Authority
from tests.support.client_process import memory_during
from tests.support.clients_file import clients_file
from tests.support.dicom_files import png
from tests.support.server_process import server_process
from tests.support.waiting import wait_for

SECRET = "the-token-of-cart-7"
PATIENT = "Müller^Erika"


class QuickEngine:
    """Answers with one word, and remembers what it was asked."""

    info = EngineInfo("quick", "0" * 64, "b", 1, "cpu", "fp32", 100, 1000)

    def __init__(self) -> None:
        self.asked: list[GenerationRequest] = []
        self.hold_seconds = 0.0
        self.hold: threading.Event | None = None

    def generate(self, request: GenerationRequest, stopped: Callable[[], bool]) -> Iterator[Event]:
        self.asked.append(request)
        time.sleep(self.hold_seconds)
        if self.hold:
            assert self.hold.wait(60)
        if "fail" in request.prompt:
            raise KeyError(request.prompt)
        yield Finished("Done", (1,), FinishReason.STOP, 1, 0, {}, None)

    def prepare(self, frames: object, client: str, scope: str, stopped: Callable[[], bool]) -> None: ...

    def prompt_tokens(self, frames: list[Frame]) -> int:
        return len(frames)

    def read_image(self, image: object, before: object, asker: object, allow_mixed_studies: bool) -> list[Frame]:
        return []


@pytest.fixture
def engine() -> QuickEngine:
    return QuickEngine()


@pytest.fixture
def clients(tmp_path: Path) -> Path:
    cart = {"token": SECRET, "max_calls": 1, "max_studies": 1}
    return clients_file(tmp_path, {"cart-7": cart, "workstation": {"certificate": "workstation.example"}})


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


Serve = Callable[..., ReportServer]


@pytest.fixture
def start(engine: QuickEngine) -> Iterator[Serve]:
    servers: list[ReportServer] = []

    def started(clients: Path | None = None, **options: object) -> ReportServer:
        access = ClientsFile(clients) if clients else None
        chosen = replace(ServerOptions("localhost:0", grace_seconds=0), **options)  # type: ignore[arg-type]
        servers.append(ReportServer(engine, chosen, access=access))
        return servers[-1]

    yield started
    for server in servers:
        server.stop()


def question(client: Connection, text: str = "Why?") -> pb.Result:
    *_, last = client.generate(ReportRequest(Task.QUESTION, prompt=text), timeout=10)
    return last.result


def attempts(stub: report_pb2_grpc.ReportServiceStub, token: str | None) -> list[Callable[[], object]]:
    """A call of each kind, with a token or with none."""
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    return [
        lambda: list(stub.AnswerQuestion(pb.AnswerQuestionRequest(question="?"), metadata=metadata)),
        lambda: stub.GetModelInfo(pb.GetModelInfoRequest(), metadata=metadata),
        lambda: stub.BeginStudy(pb.BeginStudyRequest(), metadata=metadata),
    ]


def test_a_token_gets_in_and_nothing_else_does(
    start: Serve, clients: Path, engine: QuickEngine, caplog: pytest.LogCaptureFixture
) -> None:
    server = start(clients)
    with Connection(server.address, Credentials(token=SECRET)) as client:
        assert question(client).text == "Done" and engine.asked[-1].client == "cart-7"
    engine.asked.clear()
    with caplog.at_level(logging.INFO):
        for token in ("", "wrong-token", SECRET + "x", None):
            with grpc.insecure_channel(server.address) as channel:
                for attempt in attempts(report_pb2_grpc.ReportServiceStub(channel), token):
                    with pytest.raises(grpc.RpcError) as refused:
                        attempt()
                    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]
    assert engine.asked == []
    refusals = [record for record in caplog.records if "unknown client" in record.message]
    assert len(refusals) == 12 and {record.tried for record in refusals} == {"token", "none"}  # type: ignore[attr-defined]
    written = "\n".join(logs.JsonLines().format(record) for record in caplog.records)
    assert "wrong-token" not in written and SECRET not in written


def test_reflection_asks_too_and_health_does_not(start: Serve, clients: Path) -> None:
    server = start(clients)
    with grpc.insecure_channel(server.address) as channel:
        assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5).status == 1
        ask = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        with pytest.raises(grpc.RpcError) as refused:
            list(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(ask, timeout=5))
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]


def test_the_clients_file_is_followed(start: Serve, clients: Path) -> None:
    server = start(clients)
    with Connection(server.address, Credentials(token="new")) as client:
        with pytest.raises(Unauthenticated, match="token-file"):
            question(client)
        before = clients.read_text()
        clients.write_text(before + f'[cart-8]\ntoken_sha256 = "{sha256(b"new").hexdigest()}"\n')
        assert question(client).text == "Done"
        clients.write_text("half a li")
        assert question(client).text == "Done", "a broken file locked everybody out"
        clients.write_text(before)
        with pytest.raises(Unauthenticated, match="token-file"):
            question(client)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "no client"),
        ("[a]\n", "no credentials for a"),
        ("a = 1\n", "no credentials for a"),
        ('[a]\ntoken_sha256 = "secret"\n', r"wrong at a\.token_sha256"),
        ('[a]\ncertificate = "x"\nmax_calls = 0\n', r"wrong at a\.max_calls"),
        ('[a]\npassword = "hunter2"\n', r"wrong at a\.password"),
        ("[a", "not TOML"),
    ],
)
def test_a_wrong_clients_file_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "clients.toml"
    path.write_text(text)
    with pytest.raises(NotPossibleHere, match=sentence) as refused:
        ClientsFile(path)
    assert "hunter2" not in str(refused.value)


def test_a_known_certificate_does_not_excuse_a_wrong_token(clients: Path) -> None:
    known = ClientsFile(clients)
    assert known.find(None, ["workstation.example"]).name == "workstation"
    with pytest.raises(Unauthenticated):
        known.find("wrong", ["workstation.example"])


def test_quotas_are_each_clients_own(start: Serve, clients: Path, engine: QuickEngine) -> None:
    server = start(clients)
    engine.hold_seconds = 0.5
    metadata = (("authorization", f"Bearer {SECRET}"),)
    with grpc.insecure_channel(server.address) as channel:
        stub = report_pb2_grpc.ReportServiceStub(channel)
        first = stub.AnswerQuestion(pb.AnswerQuestionRequest(question="?"), metadata=metadata)
        wait_for(lambda: engine.asked)
        with pytest.raises(grpc.RpcError, match="the maximum for your client") as refused:
            list(stub.AnswerQuestion(pb.AnswerQuestionRequest(question="?"), metadata=metadata))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
        assert "grpc-retry-pushback-ms" in dict(refused.value.trailing_metadata())  # type: ignore[attr-defined]
        assert list(first)[-1].result.text == "Done"
        stub.BeginStudy(pb.BeginStudyRequest(), metadata=metadata)
        with pytest.raises(grpc.RpcError, match="of your studies are open"):
            stub.BeginStudy(pb.BeginStudyRequest(), metadata=metadata)


def test_mutual_tls(start: Serve, clients: Path, authority: Authority, tmp_path: Path) -> None:
    files = TlsFiles(*authority.issue("server", "localhost"), authority.ca_file)
    server = start(clients, tls=files)
    known = Credentials(authority.ca_file, *authority.issue("known", "workstation.example"))
    with Connection(server.address, known) as client:
        assert question(client).text == "Done"
    stranger = Credentials(authority.ca_file, *authority.issue("stranger", "stranger.example"))
    with Connection(server.address, stranger) as client, pytest.raises(Unauthenticated, match="token-file"):
        question(client)
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    for credentials in (
        Credentials(authority.ca_file),  # without a certificate
        Credentials(authority.ca_file, *other.issue("known", "workstation.example")),  # signed by somebody else
        Credentials(authority.ca_file, *authority.issue("old", "workstation.example", expired=True)),
        Credentials(),  # plain text
        replace(known, server_ca=other.ca_file),  # a server that this client does not trust
    ):
        with (
            Connection(server.address, credentials) as client,
            pytest.raises(ServerUnavailable, match="certificate"),
        ):
            question(client)


def greeted_with(server: ReportServer, authority: Authority) -> bytes:
    """The certificate that a new connection is shown; one that is cut as the certificates change is made again."""
    host, _, port = server.address.rpartition(":")
    context = ssl.create_default_context(cafile=str(authority.ca_file))
    shown: list[bytes] = []

    def shake_hands() -> list[bytes]:
        with (
            suppress(ConnectionError, ssl.SSLEOFError),
            socket.create_connection((host, int(port)), timeout=20) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            shown.append(connection.getpeercert(binary_form=True) or b"")
        return shown

    wait_for(shake_hands)
    return shown[0]


def der(certificate: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(certificate.read_text().partition("-----END")[0] + "-----END CERTIFICATE-----\n")


@pytest.fixture
def followed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("echovlm_edge.runtime.serving.transport.server.CERTIFICATE_SECONDS", 0.02)


@pytest.mark.usefixtures("followed_at_once")
def test_certificates_are_followed(
    start: Serve, authority: Authority, engine: QuickEngine, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = authority.issue("server", "localhost")
    server = start(None, tls=TlsFiles(certificate, key), grace_seconds=20)
    first = der(certificate)
    assert greeted_with(server, authority) == first
    release = threading.Event()
    engine.hold = release
    with Connection(server.address, Credentials(authority.ca_file)) as client, ThreadPoolExecutor(1) as threads:
        running = threads.submit(question, client)
        wait_for(lambda: engine.asked)
        authority.issue("server", "localhost")
        wait_for(lambda: greeted_with(server, authority) == der(certificate))
        release.set()
        assert running.result().text == "Done", "a running call was cut off"
        assert question(client).text == "Done", "the client did not connect again"
    renewed = der(certificate)
    whole = key.read_bytes()
    caplog.clear()
    with caplog.at_level(logging.INFO):
        for damaged in (b"no key", b""):
            key.write_bytes(damaged)
            wait_for(lambda: "the old ones stay" in caplog.text)
            assert greeted_with(server, authority) == renewed, "files that cannot be used changed something"
        key.unlink()
        wait_for(lambda: "cannot be read" in caplog.text)
        time.sleep(0.2)  # for more lines, which would be wrong
        assert greeted_with(server, authority) == renewed
        assert caplog.text.count("the old ones stay") <= 3, "one line for each change"
        assert "read the certificates again" not in caplog.text
        key.write_bytes(whole)
        authority.issue("server", "localhost")
        wait_for(lambda: greeted_with(server, authority) == der(certificate))


def test_a_taken_port_is_not_shared(start: Serve, authority: Authority) -> None:
    files = TlsFiles(*authority.issue("server", "localhost"))
    first = start(None, tls=files, listen="127.0.0.1:0")
    for second in (None, files):
        with pytest.raises(NotPossibleHere, match="Address already in use"):
            start(None, tls=second, listen=first.address)


def test_an_encrypted_key_is_refused_and_nobody_is_asked(start: Serve, authority: Authority) -> None:
    certificate, key = authority.issue("server", "localhost")
    plain = load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(plain.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    with pytest.raises(NotPossibleHere, match="not a PEM certificate and the key"):
        start(None, tls=TlsFiles(certificate, key))


def test_certificates_change_under_a_flood_of_handshakes(
    golden_bundle: Path, authority: Authority, tmp_path: Path
) -> None:
    certificate, key = authority.issue("server", "localhost")
    pairs = []
    for _ in range(2):
        authority.issue("server", "localhost")
        pairs.append((certificate.read_bytes(), key.read_bytes()))
    patch = "from echovlm_edge.runtime.serving.transport import server\nserver.CERTIFICATE_SECONDS = 0.005\n"
    options = ("--tls-certificate", str(certificate), "--tls-key", str(key))
    over = threading.Event()

    def flood(address: str) -> int:
        context = ssl.create_default_context(cafile=str(authority.ca_file))
        context.set_alpn_protocols(["h2"])
        host, _, port = address.rpartition(":")
        greeted = 0
        while not over.is_set():
            with suppress(OSError):  # reset, as the server that had accepted it was closed at that moment
                plain = socket.create_connection((host, int(port)), timeout=20)
                with context.wrap_socket(plain, server_hostname="localhost"):
                    greeted += 1
        return greeted

    with server_process(golden_bundle, tmp_path, *options, patch=patch) as server, ThreadPoolExecutor(4) as threads:
        floods = [threads.submit(flood, server.address) for _ in range(4)]
        try:
            for turn in range(200):
                for path, data in zip((certificate, key), pairs[turn % 2], strict=True):
                    path.write_bytes(data)
                server.wait_for("read the certificates again", turn + 1)
        finally:
            over.set()
        assert sum(flood.result() for flood in floods) > 200
        with Connection(f"localhost:{server.address.rpartition(':')[2]}", Credentials(authority.ca_file)) as client:
            assert question(client).text
        server.tell(signal.SIGTERM)
        assert server.end() == 0, server.said


def test_certificates_that_do_not_belong_together_are_one_sentence(start: Serve, authority: Authority) -> None:
    certificate, _ = authority.issue("one", "localhost")
    _, key = authority.issue("two", "localhost")
    with pytest.raises(NotPossibleHere, match="not a PEM certificate and the key that belongs to it"):
        start(None, tls=TlsFiles(certificate, key))
    with pytest.raises(NotPossibleHere, match="cannot be read"):
        start(None, tls=TlsFiles(certificate.with_name("none"), key))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--listen", "0.0.0.0:0"], "would be served without TLS"),
        (["--listen", "0.0.0.0:0", "--insecure"], "give --insecure twice"),
        (["--listen", "[::]:0"], "would be served without TLS"),
        (["--listen", "cart.example:1"], "would be served without TLS"),
        (["--listen", "0.0.0.0:0", "--tls-certificate", "c", "--tls-key", "k"], "served without client authentication"),
        (["--tls-key", "k"], "needs both"),
        (["--clients", "/nowhere.toml"], "/nowhere.toml cannot be read"),
        (["--listen", "0.0.0.0:0", "--insecure", "--insecure"], "no bundle at"),
    ],
)
def test_open_doors_have_to_be_asked_for_twice(
    options: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert serve(["--bundle", str(tmp_path), *options]) == 2
    assert sentence in capsys.readouterr().err


def test_a_token_is_never_sent_in_plain_text_to_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    token = tmp_path / "token"
    token.write_text(SECRET)
    asked = ["--server", "cart.example:50051", "--prompt", "Why?", "--token-file", str(token)]
    assert report_command.main(asked) == 2
    assert "in plain text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (pb.AnswerQuestionRequest(question="x" * 101), "101 characters"),
        (pb.AnswerQuestionRequest(question="x", images=[pb.Image(data=b"x")] * 4), "4 images, more than 3"),
        (
            pb.AnswerQuestionRequest(
                question="x", images=[pb.Image(data=b"x", frames=pb.FrameSelection(evenly_spaced=10_000))]
            ),
            "10,000 frames",
        ),
    ],
)
def test_too_much_is_refused_before_it_is_decoded(
    request_: pb.AnswerQuestionRequest, sentence: str, start: Serve, engine: QuickEngine
) -> None:
    server = start(limits=CallLimits(images=3, frames=8, prompt_characters=100))
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError, match=sentence) as refused:
        list(report_pb2_grpc.ReportServiceStub(channel).AnswerQuestion(request_))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    assert engine.asked == []


def test_a_message_of_a_gigabyte_is_refused_without_being_held(start: Serve, engine: QuickEngine) -> None:
    server = start()
    client = (
        "import grpc, sys; from echovlm.v1 import report_pb2 as pb, report_pb2_grpc\n"
        "options = [('grpc.max_send_message_length', -1)]\n"
        "stub = report_pb2_grpc.ReportServiceStub(grpc.insecure_channel(sys.argv[1], options))\n"
        "asked = pb.AnswerQuestionRequest(question='Why?', images=[pb.Image(data=bytes(1 << 30))])\n"
        "try: list(stub.AnswerQuestion(asked))\n"
        "except grpc.RpcError as error: print(error.code().name, error.details())\n"
    )
    answer, grown = memory_during(client, server.address)
    assert answer.startswith("RESOURCE_EXHAUSTED") and "larger than max" in answer, answer
    assert grown < 100e6, f"{grown / 1e6:.0f} MB more"
    assert engine.asked == []


def test_the_log_has_ids_and_figures_and_nothing_of_the_request(start: Serve, clients: Path) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonLines())
    root = logging.getLogger()
    root.addHandler(handler)
    level = root.level
    root.setLevel(logging.INFO)
    try:
        server = start(clients)
        with grpc.insecure_channel(server.address) as channel:
            stub = report_pb2_grpc.ReportServiceStub(channel)
            metadata = (
                ("authorization", f"Bearer {SECRET}"),
                ("x-request-id", PATIENT.encode("ascii", "replace").decode()),
            )
            call = stub.AnswerQuestion(pb.AnswerQuestionRequest(question=PATIENT), metadata=metadata)
            list(call)
            request_id = dict(call.initial_metadata())["x-request-id"]
            bad = pb.Image(data=png(64, 64), media_type=PATIENT)
            for question in (
                pb.AnswerQuestionRequest(question=f"{PATIENT} fail"),
                pb.AnswerQuestionRequest(question=f"{PATIENT}", study=PATIENT),
                pb.AnswerQuestionRequest(question=f"{PATIENT}", images=[bad] * 200),
            ):
                with pytest.raises(grpc.RpcError) as failed:
                    list(stub.AnswerQuestion(question, metadata=metadata))
                assert failed.value.code() is not grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    calls = [line for line in lines if line["message"] == "call"]
    assert [call["outcome"] for call in calls] == ["ok", "internal", "not_found", "invalid_argument"]
    assert calls[0]["request_id"] == request_id and calls[0]["client"] == "cart-7"
    assert {"time", "level", "seconds", "prompt_tokens", "generated_tokens"} <= set(calls[0])
    for piece in ("ller", "Erika", SECRET, 'fail"'):
        assert piece not in stream.getvalue()
