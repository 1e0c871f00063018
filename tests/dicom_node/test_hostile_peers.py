"""Who may not send, and what is no DICOM: refused, nothing crashes, nothing of a patient in a log."""

from __future__ import annotations

import logging
import os
import random
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from pydicom.uid import generate_uid
from pynetdicom import AE
from pynetdicom.pdu_primitives import A_ASSOCIATE

from benchmarks import served
from echovlm_edge.runtime.contracts.errors import NotPossibleHere, ServerUnavailable
from echovlm_edge.runtime.dicom_node.node import Node
from echovlm_edge.runtime.dicom_node.receiving.peers import Peers, tls_context
from tests.support.carts import running_node, still, store, study_of, write
from tests.support.waiting import wait_for

LONG = bool(os.environ.get("ECHOVLM_LONG"))
CASES = 10_000 if LONG else 60
SECRETS = ("Sekret", "ZQX-4711", "ACC-99", "Refer")
ULTRASOUND, EXPLICIT = "1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.1.2.1"


@pytest.fixture
def died(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Threads that an exception has ended."""
    found: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: found.append(f"{args.thread}: {args.exc_type}"))
    return found


@pytest.fixture
def node(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Node]:
    caplog.set_level(logging.INFO)
    options = {"destination": (f"{tmp_path}/out",), "quiet_seconds": 600, "max_associations": 4, "idle_seconds": 600.0}
    with running_node(tmp_path / "spool", "127.0.0.1:9", **options) as running_one:
        yield running_one


def logged(caplog: pytest.LogCaptureFixture) -> str:
    """What the log has; pytest also catches the lines of loggers whose lines go nowhere."""
    assert not any(logging.getLogger(name).propagate for name in ("pydicom", "pynetdicom"))
    ours = [record for record in caplog.records if not record.name.startswith(("pydicom", "pynetdicom"))]
    return "\n".join(record.getMessage() + repr(record.__dict__) for record in ours)


def address_of(node: Node) -> tuple[str, int]:
    host, _, port = node.address.rpartition(":")
    return host, int(port)


def works(node: Node, folder: Path) -> None:
    """A cart can still send."""
    assert store(node, write(folder, still(study_of(), 1))) == {}


def test_an_unknown_sender_is_rejected(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    peers = tmp_path / "peers.toml"
    peers.write_text(
        '[one]\nae_title = "CART"\naddress = ["10.0.0.0/8", "127.0.0.1"]\n[two]\nae_title = "FAR"\naddress = "10.0.0.1"\n'
    )
    files = write(tmp_path / "in", still(study_of(), 1))
    with running_node(tmp_path / "spool", "127.0.0.1:9", destination=(f"{tmp_path}/out",), peers=peers) as node:
        assert store(node, files, title="CART") == {}
        for title in ("STRANGER", "FAR", ""):
            with pytest.raises(ServerUnavailable, match="rejects the association"):
                store(node, files, title=title or " X")
        peers.write_text('[one]\nae_title = "STRANGER"\n')
        assert store(node, files, title="STRANGER") == {}
        peers.write_text('[far]\nae_title = "CART"\naddress = "10.0.0.1"\n')
        with pytest.raises(ServerUnavailable):
            store(node, files)  # nobody at this address may send
        peers.write_text('[one]\nae_title = "STRANGER"\n')
        assert store(node, files, title="STRANGER") == {}
        peers.write_text("[one")  # cannot be used: the old one stays
        assert store(node, files, title="STRANGER") == {}
    assert "an unknown sender was rejected" in logged(caplog) and "the old one stays" in logged(caplog)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no peers"),
        ("[a]\naddress = '10.0.0.1'", "gives a no ae_title"),
        ("[a]\nae_title = 'X'\naddress = 'cart'", "wrong at a.address"),
        ("[a]\nae_title = 'X'\nadress = '10.0.0.1'", "unknown key, a.adress"),
    ],
)
def test_a_wrong_peers_file_is_refused_by_name(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "peers.toml").write_text(text)
    with pytest.raises(NotPossibleHere, match=words):
        Peers(tmp_path / "peers.toml")


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def test_tls_admits_certificates_and_refuses_everything_else(
    authority: trustme.CA, tmp_path: Path, died: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    own, cart, foreign = authority.issue_cert("localhost"), authority.issue_cert("cart7.example"), trustme.CA()
    files = {name: tmp_path / name for name in ("own.pem", "own.key", "ca.pem")}
    own.private_key_pem.write_to_path(files["own.key"])
    for number, blob in enumerate(own.cert_chain_pems):
        blob.write_to_path(files["own.pem"], append=number > 0)
    authority.cert_pem.write_to_path(files["ca.pem"])
    peers = tmp_path / "peers.toml"
    peers.write_text('[one]\nae_title = "CART"\ncertificate = "cart7.example"\n')
    options = {
        "tls_certificate": files["own.pem"],
        "tls_key": files["own.key"],
        "tls_client_ca": files["ca.pem"],
        "peers": peers,
        "destination": (f"{tmp_path}/out",),
    }

    def echoes(certificate: trustme.LeafCert | None, version: ssl.TLSVersion | None = None) -> bool:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        if certificate:
            certificate.configure_cert(context)
        if version:
            context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, version
        entity = AE("CART")
        entity.acse_timeout = entity.network_timeout = 5
        entity.add_requested_context(ULTRASOUND, EXPLICIT)
        association = entity.associate(*address_of(node), ae_title="ECHOVLM", tls_args=(context, "localhost"))
        established = association.is_established
        if established:
            association.release()
        return established

    with running_node(tmp_path / "spool", "127.0.0.1:9", **options) as node:
        assert echoes(cart)
        assert echoes(cart, ssl.TLSVersion.TLSv1_2)
        assert not echoes(cart, ssl.TLSVersion.TLSv1_1)
        assert not echoes(None)
        assert not echoes(foreign.issue_cert("cart7.example"))
        assert not echoes(authority.issue_cert("cart8.example"))
        with pytest.raises(ServerUnavailable):  # plain text
            store(node, write(tmp_path / "in", still(study_of(), 1)))
        files["own.key"].write_text("no key")
        node.renew_certificates()
        assert echoes(cart) and "the old ones stay" in logged(caplog)
        other = foreign.issue_cert("localhost")
        other.private_key_pem.write_to_path(files["own.key"])
        other.cert_chain_pems[0].write_to_path(files["own.pem"])
        node.renew_certificates()
        assert not echoes(cart)  # the new one is shown, which this cart does not trust
        own.private_key_pem.write_to_path(files["own.key"])
        own.cert_chain_pems[0].write_to_path(files["own.pem"])
        node.renew_certificates()
        silent = [socket.create_connection(address_of(node)) for _ in range(8)]  # no handshake: nobody waits for them
        assert echoes(cart)
        for connection in silent:
            connection.close()
    assert not died
    assert not any(secret in logged(caplog) for secret in SECRETS)


def test_only_ciphers_of_bcp_195_are_offered(authority: trustme.CA, tmp_path: Path) -> None:
    own = authority.issue_cert("localhost")
    own.private_key_and_cert_chain_pem.write_to_path(tmp_path / "own.pem")
    context = tls_context(tmp_path / "own.pem", tmp_path / "own.pem", None)
    names = [str(cipher["name"]) for cipher in context.get_ciphers()]
    assert names and all(name.startswith(("TLS_", "ECDHE-")) for name in names)
    assert all("GCM" in name or "CHACHA20" in name for name in names)


def test_more_associations_than_allowed_are_rejected_and_those_before_work(node: Node, tmp_path: Path) -> None:
    entity = AE("CART")
    entity.add_requested_context(ULTRASOUND, EXPLICIT)
    held = [entity.associate(*address_of(node), ae_title="ECHOVLM") for _ in range(4)]
    assert all(association.is_established for association in held)
    over = entity.associate(*address_of(node), ae_title="ECHOVLM")
    assert over.is_rejected and not over.is_established
    for association in held:
        association.release()
    wait_for(lambda: node.listener.associations == 0)
    works(node, tmp_path / "in")


def test_silent_and_slow_connections_are_closed(tmp_path: Path) -> None:
    half = association_request()[:40]
    options = {"destination": (f"{tmp_path}/out",), "idle_seconds": 5.0}
    with running_node(tmp_path / "spool", "127.0.0.1:9", **options) as node:
        connections = [socket.create_connection(address_of(node)) for _ in range(3)]
        for connection in connections:
            connection.sendall(half)
        wait_for(lambda: node.listener.associations == 0)
        works(node, tmp_path / "in")


def test_a_pdu_that_claims_gigabytes_is_refused_before_it_comes(tmp_path: Path) -> None:
    options = {"destination": (f"{tmp_path}/out",), "idle_seconds": 600.0}
    with running_node(tmp_path / "spool", "127.0.0.1:9", **options) as node:
        with socket.create_connection(address_of(node)) as connection:
            connection.settimeout(5)
            connection.sendall(struct.pack(">BBL", 1, 0, 0xFFFFFF00) + bytes(10_000))
            assert connection.recv(100)[:1] == b"\x07"  # A-ABORT
        works(node, tmp_path / "in")


def association_request(title: str = "CART") -> bytes:
    """The first PDU of a cart."""
    entity = AE(title)
    entity.add_requested_context(ULTRASOUND, EXPLICIT)
    from pynetdicom.pdu import A_ASSOCIATE_RQ
    from pynetdicom.pdu_primitives import ImplementationClassUIDNotification, MaximumLengthNotification

    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = title, "ECHOVLM"
    longest, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    longest.maximum_length_received, implementation.implementation_class_uid = 16382, generate_uid()
    primitive.user_information = [longest, implementation]
    context = entity.requested_contexts[0]
    context.context_id = 1
    primitive.presentation_context_definition_list = [context]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(primitive)
    return bytes(pdu.encode())


def conversation(folder: Path, context: int = 1, **command: bytes) -> tuple[bytes, bytes, bytes]:
    """All that a cart sends for one instance: request, C-STORE, release; `command` replaces elements, empty ones are left out."""
    (path,) = write(folder, still(study_of(), 1))
    content = path.read_bytes()
    data = content[144 + int.from_bytes(content[140:144], "little") :]
    values = {
        "sop_class": ULTRASOUND.encode() + b"\0" * (len(ULTRASOUND) % 2),
        "field": struct.pack("<H", 1),
        "message": struct.pack("<H", 1),
        "priority": struct.pack("<H", 0),
        "data_set": struct.pack("<H", 0),
        "sop_instance": path.stem.encode() + b"\0" * (len(path.stem) % 2),
        **command,
    }
    tags = (0x0002, 0x0100, 0x0110, 0x0700, 0x0800, 0x1000)
    elements = [(tag, value) for tag, value in zip(tags, values.values(), strict=True) if value]
    encoded = b"".join(struct.pack("<HHL", 0, tag, len(value)) + value for tag, value in elements)
    encoded = struct.pack("<HHLL", 0, 0, 4, len(encoded)) + encoded

    def p_data(kind: int, part: bytes) -> bytes:
        value = struct.pack(">LBB", len(part) + 2, context, kind) + part
        return struct.pack(">BBL", 4, 0, len(value)) + value

    return association_request(), p_data(3, encoded) + p_data(2, data), struct.pack(">BBLL", 5, 0, 4, 0)


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Change a few bytes, or cut, repeat or insert some."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 6)):
        if not changed:
            break
        place = chance.randrange(len(changed))
        match chance.randrange(5):
            case 0:
                changed[place] = chance.randrange(256)
            case 1:
                changed[place : place + 4] = chance.randbytes(4)
            case 2:
                del changed[place : place + chance.randint(1, 40)]
            case 3:
                changed[place:place] = changed[place : place + chance.randint(1, 40)]
            case 4:
                changed[place : place + 4] = chance.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"))
    return bytes(changed)


def test_an_honest_conversation_is_taken(node: Node, tmp_path: Path) -> None:
    """What is mutated below is right to begin with."""
    say(node, *conversation(tmp_path / "in"))
    wait_for(lambda: len(list(node.spool.arrivals.instances.iterdir())) == 1)


@pytest.mark.parametrize(
    "command",
    [
        {"message": b""},
        {"sop_instance": b""},
        {"sop_class": b""},
        {"priority": b""},
        {"sop_class": b"1.2.840.10008.1.1\0"},
        {"sop_class": b"1.2.3.4\0"},
        {"context": 3},
        {},
    ],
    ids=lambda command: "-".join(command) or "released before its answer",
)
def test_a_whole_instance_that_nobody_takes_leaves_no_file(
    command: dict[str, Any], node: Node, tmp_path: Path, died: list[str]
) -> None:
    """Its command is wrong, so that no handler is called, or its association ends meanwhile."""
    request, message, release = conversation(tmp_path / "in", **command)
    say(node, request, message + message, release) if command else say(node, request + message + release)
    wait_for(lambda: node.listener.associations == 0)
    assert not list(node.spool.arrivals.incoming.iterdir())
    assert not died
    works(node, tmp_path / "in")


def say(node: Node, *parts: bytes) -> bytes:
    """Send bytes in parts, each when the one before was answered or nothing comes; returns all answers."""
    heard = b""
    with socket.create_connection(address_of(node)) as connection:
        connection.settimeout(0.1)
        for part in parts:
            try:
                connection.sendall(part)
                heard += connection.recv(4096)
            except OSError:
                pass
    return heard


def test_a_process_prints_nothing_of_what_it_is_sent(tmp_path: Path) -> None:
    """A patient's name where a UID should be, in the command and in the data set."""
    request, message, _ = conversation(tmp_path / "in")
    uids = [path.stem.encode() for path in (tmp_path / "in").iterdir()]
    hostile = message.replace(uids[0][:14], b"Sekret^Patient")
    assert hostile.index(b"Sekret^Patient") < 200  # in the command, too
    with served.receiving(tmp_path / "spool", tmp_path, "127.0.0.1:9", "--destination", f"{tmp_path}/out") as node:
        host, _, port = node.address.partition(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.settimeout(10)
            connection.sendall(request)
            assert connection.recv(4096)[:1] == b"\x02"
            connection.sendall(hostile)
            assert connection.recv(4096)[:1] in (b"\x04", b"\x07")  # refused, or aborted
    log = node.log.read_text()
    assert log and not any(secret in log for secret in SECRETS)


def test_fuzzed_conversations_crash_nothing(
    node: Node, tmp_path: Path, died: list[str], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(7)
    request, message, release = conversation(tmp_path / "in")
    for number in range(CASES):
        if number % 4 == 0:
            say(node, mutated(request, chance), message, release)
        elif number % 4 == 1:  # the association is right, what follows is not
            say(node, request, mutated(message, chance), release)
        elif number % 4 == 2:  # only the command is not
            say(node, request, mutated(message[:200], chance) + message[200:], release)
        else:
            say(node, request, message + mutated(release, chance), message)
        if number % 4 == 0:
            wait_for(lambda: node.listener.associations < 4)
    wait_for(lambda: node.listener.associations == 0, 30)
    works(node, tmp_path / "in")
    assert not died
    assert not list(node.spool.arrivals.incoming.iterdir())
    output = capfd.readouterr()
    assert not any(secret in logged(caplog) + output.out + output.err for secret in SECRETS)


def test_fuzzed_data_sets_are_stored_or_refused(
    node: Node, tmp_path: Path, died: list[str], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(8)
    (path,) = write(tmp_path / "in", still(study_of(), 1))
    content = path.read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")
    for number in range(CASES):
        damaged = tmp_path / f"{number}.dcm"
        damaged.write_bytes(content[:start] + mutated(content[start : start + 1200], chance) + content[start + 1200 :])
        status = store(node, [damaged]).get(damaged, 0x0000)
        assert status in (0x0000, 0xC000, 0xA900), f"data set {number} got {status:04X}"
        damaged.unlink()
    assert not died and not list(node.spool.arrivals.incoming.iterdir())
    works(node, tmp_path / "in")
    output = capfd.readouterr()
    assert not any(secret in logged(caplog) + output.out + output.err for secret in SECRETS)
