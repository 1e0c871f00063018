"""A token in plain text stays on this computer: whatever an address looks like, and whatever proxy is set."""

from __future__ import annotations

import socket
import threading

import pytest

from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.client.wire.credentials import Credentials
from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.serving.supervision.from_settings import refuse_open_doors
from echovlm_edge.runtime.serving.supervision.serve_settings import ServeSettings
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions
from tests.support.decoding_engine import DecodingEngine
from tests.support.loopback_addresses import ELSEWHERE, HERE


@pytest.mark.parametrize("address", HERE)
def test_a_token_may_travel_to_this_computer(address: str) -> None:
    with Connection(address, Credentials(token="secret")):
        pass


@pytest.mark.parametrize("address", ELSEWHERE)
def test_a_token_does_not_travel_further(address: str) -> None:
    with pytest.raises(NotPossibleHere, match="in plain text"):
        Connection(address, Credentials(token="secret"))


@pytest.mark.parametrize("host", ["127.evil.example", "127.1", "0.0.0.0", "[::]", "[::ffff:127.0.0.1]"])
def test_a_server_there_is_not_open_by_mistake(host: str) -> None:
    with pytest.raises(InvalidInput, match="can be reached by others"):
        refuse_open_doors(ServeSettings(bundle="b", listen=f"{host}:1"))


def test_a_call_to_this_computer_takes_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel of gRPC obeys http_proxy even for 127.0.0.1, and the proxy would read the token."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        seen = threading.Event()

        def refuse() -> None:
            try:
                connection, _ = proxy.accept()
            except OSError:
                return
            seen.set()
            connection.close()

        thread = threading.Thread(target=refuse)
        thread.start()
        for name in ("http_proxy", "https_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        for name in ("no_proxy", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
        server = ReportServer(DecodingEngine(), ServerOptions("127.0.0.1:0", grace_seconds=0))
        try:
            with Connection(server.address, Credentials(token="secret")) as client:
                assert client.model_info(timeout=10).model == "decoding"
        finally:
            server.stop()
            proxy.shutdown(socket.SHUT_RDWR)
            thread.join()
    assert not seen.is_set()
