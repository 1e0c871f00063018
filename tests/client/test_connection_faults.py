"""What a user reads where no connection comes about: which mistake it is and how to fix it, without gRPC's own lines."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.served import free_port
from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.client.wire.credentials import PLAIN, Credentials
from echovlm_edge.runtime.contracts.errors import NotPossibleHere, ServerUnavailable
from echovlm_edge.runtime.serving.access.tls import TlsFiles
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions
from tests.support.authority import Authority
from tests.support.decoding_engine import DecodingEngine

Serve = Callable[[TlsFiles | None], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers = []

    def start(tls: TlsFiles | None) -> str:
        servers.append(ReportServer(DecodingEngine(), ServerOptions("127.0.0.1:0", grace_seconds=0.1, tls=tls)))
        return f"localhost:{servers[-1].port}"

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    (tmp_path / "stranger").mkdir()
    return Authority(tmp_path / "stranger")


def refusals(address: str, credentials: Credentials = PLAIN) -> Iterator[str]:
    """What is said when a client waits for the server, and when it just calls."""
    with Connection(address, credentials) as client:
        for attempt in (lambda: client.wait_until_ready(8), lambda: client.model_info(8)):
            with pytest.raises(ServerUnavailable) as refused:
                attempt()
            yield str(refused.value)


def test_a_working_connection_has_no_fault(serve: Serve, authority: Authority) -> None:
    for tls, credentials in (
        (None, Credentials()),
        (TlsFiles(*authority.issue("server", "localhost")), Credentials(authority.ca_file)),
    ):
        with Connection(serve(tls), credentials) as client:
            client.wait_until_ready(8)
            assert client.model_info(8).model == "decoding"


def test_a_dead_port_is_told_at_once() -> None:
    began = time.monotonic()
    for said in refusals(f"127.0.0.1:{free_port()}"):
        assert "No server listens at 127.0.0.1:" in said and "echovlm-serve" in said
    assert time.monotonic() - began < 5, "it waited"


def test_an_unknown_host() -> None:
    for said in refusals("no-such-host.invalid:50051"):
        assert "The host no-such-host.invalid is not known" in said


def test_plain_text_to_a_tls_port(serve: Serve, authority: Authority) -> None:
    for said in refusals(serve(TlsFiles(*authority.issue("server", "localhost")))):
        assert "accepts only TLS" in said and "--tls-ca" in said


def test_tls_to_a_plain_port(serve: Serve, authority: Authority) -> None:
    for said in refusals(serve(None), Credentials(authority.ca_file)):
        assert "does not speak TLS" in said and "leave out --tls-ca" in said


def test_a_certificate_signed_by_another_authority(serve: Serve, authority: Authority, stranger: Authority) -> None:
    address = serve(TlsFiles(*authority.issue("server", "localhost")))
    for said in refusals(address, Credentials(stranger.ca_file)):
        assert "not signed by the authority in" in said and str(stranger.ca_file) in said


def test_a_certificate_for_another_host(serve: Serve, authority: Authority) -> None:
    for said in refusals(serve(TlsFiles(*authority.issue("server", "cart.example"))), Credentials(authority.ca_file)):
        assert "is for another host than localhost" in said


def test_an_expired_certificate(serve: Serve, authority: Authority) -> None:
    address = serve(TlsFiles(*authority.issue("server", "localhost", expired=True)))
    for said in refusals(address, Credentials(authority.ca_file)):
        assert "has expired" in said


def test_a_server_that_asks_for_the_clients_certificate(
    serve: Serve, authority: Authority, stranger: Authority
) -> None:
    address = serve(TlsFiles(*authority.issue("server", "localhost"), authority.ca_file))
    for said in refusals(address, Credentials(authority.ca_file)):
        assert "asks for the client's own certificate: give --tls-certificate" in said
    for said in refusals(address, Credentials(authority.ca_file, *stranger.issue("cart", "cart.example"))):
        assert "does not take the client's certificate" in said


def test_a_listener_that_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with Connection(address) as client, pytest.raises(ServerUnavailable, match="No server answers"):
            client.wait_until_ready(0.5)


@pytest.mark.parametrize("content", [b"", b"no certificate", b"\xff\xfe\x00", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_a_file_that_is_no_certificate_is_told_before_any_call(
    tmp_path: Path, authority: Authority, content: bytes
) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_bytes(content)
    own = authority.issue("cart", "cart.example")
    with pytest.raises(NotPossibleHere, match=r"--tls-ca .*wrong\.pem is no certificate: give"):
        Connection("localhost:1", Credentials(wrong))
    with pytest.raises(NotPossibleHere, match=r"wrong\.pem and .* are not a PEM certificate and the key"):
        Connection("localhost:1", Credentials(authority.ca_file, wrong, own[1]))
    with pytest.raises(NotPossibleHere, match="give both"):
        Connection("localhost:1", Credentials(authority.ca_file, own[0]))
    with pytest.raises(NotPossibleHere, match="only with TLS"):
        Connection("localhost:1", Credentials(None, *own))


def test_a_proxy_is_not_gone_around(monkeypatch: pytest.MonkeyPatch) -> None:
    from echovlm_edge.runtime.client.wire.connection_fault import connection_fault

    monkeypatch.setenv("https_proxy", "http://proxy.invalid:3128")
    assert connection_fault("no-such-host.invalid:1", Credentials()) is None


@pytest.mark.parametrize("mistake", ["dead port", "plain text", "other authority"])
def test_the_command_prints_one_line(mistake: str, serve: Serve, authority: Authority, stranger: Authority) -> None:
    address = serve(TlsFiles(*authority.issue("server", "localhost")))
    words = {
        "dead port": ["--server", f"127.0.0.1:{free_port()}"],
        "plain text": ["--server", address],
        "other authority": ["--server", address, "--tls-ca", str(stranger.ca_file)],
    }[mistake]
    program = "from echovlm_edge.runtime.client.report_command import main; import sys; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, *words, "--prompt", "Why?"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 4, done.stderr
    assert done.stdout == "" and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
