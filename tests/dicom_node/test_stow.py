"""Instances by STOW-RS: the same as by C-STORE."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.dicom_node.node import Node
from echovlm_edge.runtime.dicom_node.receiving.part_files import Malformed, PartFiles
from echovlm_edge.runtime.dicom_node.receiving.received_file import ReceivedFile, Room, TooMuch
from echovlm_edge.runtime.dicom_node.spool.spool import Spool
from tests.support.carts import Pacs, running_node, still, store, study_of, write
from tests.support.waiting import wait_for


def body(parts: Sequence[bytes], kind: str = "application/dicom") -> bytes:
    made = b"".join(f"--xyz\r\nContent-Type: {kind}\r\n\r\n".encode() + part + b"\r\n" for part in parts)
    return made + b"--xyz--\r\n"


def post(node: Node, content: bytes, path: str = "/studies", **headers: str) -> tuple[int, dict[str, object]]:
    assert node.stow
    connection = http.client.HTTPConnection("127.0.0.1", node.stow.port, timeout=10)
    kind = 'multipart/related; type="application/dicom"; boundary=xyz'
    connection.request("POST", path, content, {"Content-Type": kind, **headers})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text) if text else {}


@pytest.fixture
def node(tmp_path: Path, server: str, pacs: Pacs) -> Iterator[Node]:
    options = {"destination": (pacs.name,), "stow": "127.0.0.1:0", "max_instance_mb": 1}
    with running_node(tmp_path / "spool", server, **options) as running_one:
        yield running_one


def test_a_study_by_stow_becomes_a_report(node: Node, tmp_path: Path, pacs: Pacs) -> None:
    study = study_of()
    files = write(tmp_path / "in", still(study, 1), still(study, 2))
    status, answer = post(node, body([path.read_bytes() for path in files]), f"/studies/{study['StudyInstanceUID']}")
    assert status == 200
    stored = answer["00081199"]["Value"]  # type: ignore[index]
    assert [one["00081155"]["Value"] for one in stored] == [[path.stem] for path in files]
    assert store(node, files) == {}  # by the other door the same again
    wait_for(lambda: pacs.documents())
    assert pacs.documents()[0].StudyInstanceUID == study["StudyInstanceUID"]


def test_what_cannot_be_stored_is_listed(node: Node, tmp_path: Path) -> None:
    (path,) = write(tmp_path / "in", still(study_of(), 1))
    status, answer = post(node, body([path.read_bytes(), b"no DICOM"]))
    assert status == 202
    assert answer["00081198"]["Value"][0]["00081197"]["Value"] == [0xC000]  # type: ignore[index]
    assert post(node, body([b"no DICOM"]))[0] == 409
    assert post(node, body([path.read_bytes()]), "/studies/1.2.3")[0] == 409  # of another study
    assert not list(node.spool.arrivals.incoming.iterdir())


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"", None, 400),
        (b"--xyz--\r\n", None, 400),
        (b"rubbish before --xyz\r\n", None, 400),
        (body([b"x"])[:-6], None, 400),
        (body([b"x"], "image/png"), None, 400),
        (body([bytes(2 << 20)]), None, 413),
        (body([b"x"]), "application/dicom", 415),
        (body([b"x"]), "multipart/related", 415),
    ],
)
def test_a_wrong_body_is_refused_and_leaves_nothing(content: bytes, kind: str | None, status: int, node: Node) -> None:
    assert post(node, content, **({"Content-Type": kind} if kind else {}))[0] == status
    assert not list(node.spool.arrivals.incoming.iterdir()) and not list(node.spool.arrivals.instances.iterdir())


def test_senders_give_the_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret")
    (path,) = write(tmp_path / "in", still(study_of(), 1))
    options = {"destination": (f"{tmp_path}/out",), "stow": "127.0.0.1:0", "stow_token_file": tmp_path / "token"}
    with running_node(tmp_path / "spool", "127.0.0.1:9", **options) as node:
        assert post(node, body([path.read_bytes()]))[0] == 401
        assert post(node, body([path.read_bytes()]), Authorization="Bearer other")[0] == 401
        assert post(node, body([path.read_bytes()]), Authorization="Bearer s3cret")[0] == 200


def test_an_open_door_is_refused(tmp_path: Path) -> None:
    options = {"destination": (f"{tmp_path}/out",), "stow": "0.0.0.0:0"}
    with (
        pytest.raises(InvalidInput, match="can be reached by others"),
        running_node(tmp_path, "127.0.0.1:9", **options),
    ):
        pass


@pytest.fixture(scope="module")
def new_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], ReceivedFile]]:
    """Makes files of at most 100 bytes."""
    spool = Spool(tmp_path_factory.mktemp("parts"))
    room = Room(spool.arrivals, 1 << 40, 0, lambda: None)
    yield lambda: ReceivedFile(spool.arrivals.new_file(), room, 100)
    spool.close()


@given(st.lists(st.binary(max_size=60).filter(lambda part: b"--xyz" not in part), min_size=1, max_size=4), st.data())
def test_a_body_is_split_alike_however_it_arrives(
    new_file: Callable[[], ReceivedFile], parts: list[bytes], data: st.DataObject
) -> None:
    files = PartFiles("xyz", new_file)
    content, found = body(parts), []
    while content:
        size = data.draw(st.integers(1, len(content)))
        found += [file.path.read_bytes() for file in files.feed(content[:size])]
        content = content[size:]
    assert files.is_whole and found == parts


@given(st.binary(max_size=200))
def test_any_body_is_taken_or_refused(new_file: Callable[[], ReceivedFile], content: bytes) -> None:
    files = PartFiles("xyz", new_file)
    try:
        for file in files.feed(b"--xyz\r\n" + content):
            assert file.path.is_file()
    except (Malformed, TooMuch):
        pass
    files.discard()


@pytest.mark.parametrize("before", [b"", body([b"x"])])
def test_a_body_that_never_begins_or_never_ends_is_refused(before: bytes, new_file: Callable[[], ReceivedFile]) -> None:
    files = PartFiles("xyz", new_file)
    assert len(files.fed(before)) == before.count(b"x\r\n--")
    with pytest.raises(Malformed):
        for _ in range(100):
            files.fed(b"\r\n" * 500)


def opened(node: Node) -> socket.socket:
    assert node.stow
    connection = socket.create_connection(("127.0.0.1", node.stow.port))
    connection.settimeout(30)
    return connection


HEAD = (
    b"POST /studies HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\nContent-Type: multipart/related; boundary=xyz\r\n"
)


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (b"", b""),
        (HEAD, b""),  # a head without an end
        (HEAD + b"\r\n", b"HTTP/1.1 408"),
        (HEAD + b"\r\n--xyz\r\nContent-Type: application/dicom\r\n\r\nDICM", b"HTTP/1.1 408"),
    ],
    ids=["nothing", "half a head", "no body", "half a body"],
)
def test_a_silent_sender_is_not_waited_for(said: bytes, answer: bytes, tmp_path: Path) -> None:
    options = {"destination": (f"{tmp_path}/out",), "stow": "127.0.0.1:0", "idle_seconds": 0.5}
    with running_node(tmp_path / "spool", "127.0.0.1:9", **options) as node, opened(node) as connection:
        connection.sendall(said)
        assert connection.recv(12) == answer
        while connection.recv(4096):  # until it is closed
            pass
        wait_for(lambda: not list(node.spool.arrivals.incoming.iterdir()))


def test_more_connections_than_allowed_are_closed(tmp_path: Path) -> None:
    (path,) = write(tmp_path / "in", still(study_of(), 1))
    options = {"destination": (f"{tmp_path}/out",), "stow": "127.0.0.1:0", "max_associations": 2}
    with running_node(tmp_path / "spool", "127.0.0.1:9", **options) as node:
        with opened(node) as first, opened(node) as second:
            first.sendall(HEAD + b"\r\n")
            second.sendall(HEAD + b"\r\n")
            with opened(node) as third:
                assert third.recv(100) == b""
        wait_for(lambda: answers(node, body([path.read_bytes()])))


def answers(node: Node, content: bytes) -> bool:
    try:
        return post(node, content)[0] == 200
    except (OSError, http.client.HTTPException):  # the connections before are still being closed
        return False


def test_an_address_from_which_nobody_may_send_is_not_heard(tmp_path: Path) -> None:
    (tmp_path / "peers").write_text('[far]\nae_title = "X"\naddress = "10.0.0.1"\n')
    options = {"destination": (f"{tmp_path}/out",), "stow": "127.0.0.1:0", "peers": tmp_path / "peers"}
    with running_node(tmp_path / "spool", "127.0.0.1:9", **options) as node, opened(node) as connection:
        assert connection.recv(100) == b""


def test_it_is_encrypted_as_associations_are(tmp_path: Path) -> None:
    authority = trustme.CA()
    own = authority.issue_cert("localhost")
    own.private_key_pem.write_to_path(tmp_path / "key")
    own.cert_chain_pems[0].write_to_path(tmp_path / "certificate")
    options = {
        "destination": (f"{tmp_path}/out",),
        "stow": "127.0.0.1:0",
        "tls_certificate": tmp_path / "certificate",
        "tls_key": tmp_path / "key",
    }
    with running_node(tmp_path / "spool", "127.0.0.1:9", **options) as node:
        for ciphers, agreed in (("ECDHE+AESGCM", True), ("ECDHE+AES:!AESGCM:!AESCCM", False)):
            context = ssl.create_default_context()
            authority.configure_trust(context)
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers(ciphers)
            with opened(node) as plain:
                try:
                    context.wrap_socket(plain, server_hostname="localhost").close()
                    assert agreed
                except (ssl.SSLError, OSError):
                    assert not agreed
