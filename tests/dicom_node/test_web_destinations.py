"""Reports to the web: STOW-RS and FHIR, once each, whatever the server answers before."""

from __future__ import annotations

import email
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import pydicom
import pytest

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.dicom_node.delivery import delivering
from tests.support.carts import running_node, still, store, study_of, write
from tests.support.waiting import wait_for


class Server(ThreadingHTTPServer):
    """Keeps what is posted: path, headers, body; answers with `answers` in turn, and then 200."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.posts: list[tuple[str, dict[str, str], bytes]] = []
        self.answers: list[tuple[int, bytes]] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posts.append((self.path, dict(self.headers), body))
        status, answer = self.server.answers.pop(0) if self.server.answers else (200, b"{}")
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(delivering, "FIRST_PAUSE", 0.05)
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def known(reason: int) -> bytes:
    return json.dumps({"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [reason]}}]}}).encode()


def test_stow_stores_the_very_document_until_it_is_taken(web: Server, tmp_path: Path, server: str) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    study = study_of()
    web.answers = [(503, b""), (200, known(0x0110))]
    to = f"http://127.0.0.1:{web.server_port}/dicom-web/studies"
    with running_node(tmp_path / "spool", server, destination=(to,), destination_token_file=token) as node:
        store(node, write(tmp_path / "in", still(study, 1)))
        uid = str(study["StudyInstanceUID"])
        wait_for(lambda: len(web.posts) == 3 and node.spool.studies.find(uid).state == "delivered")
    parts = []
    for path, headers, body in web.posts:
        assert path == "/dicom-web/studies" and headers["Authorization"] == "Bearer s3cret"
        message = email.message_from_bytes(f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode() + body)
        (part,) = message.get_payload()  # type: ignore[misc]
        parts.append(part.get_payload(decode=True))  # type: ignore[union-attr]
    assert parts[0] == parts[1] == parts[2]
    assert pydicom.dcmread(BytesIO(parts[0])).StudyInstanceUID == uid


def test_an_instance_that_the_server_has_already_is_delivered(web: Server, tmp_path: Path, server: str) -> None:
    study = study_of()
    web.answers = [(409, known(0x0111))]
    to = f"http://127.0.0.1:{web.server_port}/studies"
    with running_node(tmp_path / "spool", server, destination=(to,)) as node:
        store(node, write(tmp_path / "in", still(study, 1)))
        wait_for(lambda: node.spool.studies.find(str(study["StudyInstanceUID"])).state == "delivered")
    assert len(web.posts) == 1


def test_fhir_is_created_on_the_condition_that_it_is_not_there(web: Server, tmp_path: Path, server: str) -> None:
    study = study_of()
    web.answers = [(500, b""), (201, b"")]
    to = f"fhir+http://127.0.0.1:{web.server_port}/fhir"
    with running_node(tmp_path / "spool", server, destination=(to, f"{tmp_path}/out")) as node:
        store(node, write(tmp_path / "in", still(study, 1)))
        wait_for(lambda: node.spool.studies.find(str(study["StudyInstanceUID"])).state == "delivered")
    (file,) = (tmp_path / "out").glob("*.dcm")  # a folder gets the DICOM document alone
    identifier = f"urn:oid:{file.stem}"
    assert [path for path, _, _ in web.posts] == ["/fhir/DiagnosticReport"] * 2
    first, second = (body for _, _, body in web.posts)
    assert first == second
    report = json.loads(first)
    assert {"system": "urn:dicom:uid", "value": identifier} in report["identifier"]
    assert web.posts[0][1]["If-None-Exist"] == f"identifier=urn:dicom:uid|{identifier}"
    assert "quiet period" in report["text"]["div"]


@pytest.mark.parametrize("wrong", ["https://", "fhir+http:///x"])
def test_a_destination_without_a_host_is_refused(wrong: str, tmp_path: Path) -> None:
    with (
        pytest.raises(InvalidInput, match="names no host"),
        running_node(tmp_path, "127.0.0.1:9", destination=(wrong,)),
    ):
        pass


def test_a_token_is_not_sent_in_plain_text(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("x")
    options = {"destination": ("http://10.0.0.1/studies",), "destination_token_file": tmp_path / "token"}
    with pytest.raises(InvalidInput, match="in plain text"), running_node(tmp_path, "127.0.0.1:9", **options):
        pass
