"""Step `faults`: docs/operations.md's table in short: each fault has its documented status, and the service answers afterwards."""

from __future__ import annotations

import hashlib
import os
import secrets
import signal
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from echovlm.v1 import report_pb2 as pb
from echovlm.v1 import report_pb2_grpc
from echovlm_edge.runtime.client.report_client import ReportClient
from echovlm_edge.runtime.doctor.acceptance.checks.questions import Question, eight_questions, tokens_of
from echovlm_edge.runtime.doctor.acceptance.schema import Check, Outcome, State
from echovlm_edge.runtime.doctor.acceptance.setting import Setting
from echovlm_edge.runtime.resources.loopback_process import Served

MESSAGE_MB = 2  # the server's --max-message-mb here, so that a small file is too large
CALLS = 1  # that the client may have at a time
PATIENCE = 8  # retries of the call afterwards, while the place of the one before it is released
SECONDS = 600.0  # for a call to end
BROKEN = b"\x89PNG\r\n\x1a\n" + b"no picture"


@dataclass(frozen=True)
class Service:
    """A running server with one client who has a token, and what calls need."""

    process: Served
    stub: Any
    long_text: int  # tokens of a text that is still being written when the next call comes
    token: str = field(repr=False)

    def ask(self, image: bytes = b"", token: str | None = None, **options: Any) -> Any:
        """Ask a long question, about a file if there is one; returns the stream."""
        asked = pb.AnswerQuestionRequest(question="What do you see?", images=[pb.Image(data=image)] if image else [])
        asked.options.sampling.max_new_tokens = self.long_text
        metadata = (("authorization", f"Bearer {self.token if token is None else token}"),)
        return self.stub.AnswerQuestion(asked, timeout=SECONDS, metadata=metadata, **options)


def status(call: Iterator[Any]) -> str:
    """Read a call to its end; returns the name of its status."""
    try:
        for _ in call:
            pass
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def quota(service: Service) -> str:
    """Call while the client's only place is taken."""
    held = service.ask()
    try:
        next(held)
        return status(service.ask())
    finally:
        held.cancel()


def cancelled(service: Service) -> str:
    """Cancel a call while it writes."""
    call = service.ask()
    next(call)
    call.cancel()
    return status(call)


def killed(service: Service) -> str:
    """Kill the server, as a power failure does, while it writes."""
    call = service.ask()
    next(call)
    os.kill(service.process.pid, signal.SIGKILL)
    return status(call)


def huge_png() -> bytes:
    """Make a PNG file of a few bytes that declares 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


FAULTS: tuple[tuple[str, str, Callable[[Service], str]], ...] = (
    ("a wrong token", "UNAUTHENTICATED", lambda service: status(service.ask(token="wrong"))),
    ("a message above --max-message-mb", "RESOURCE_EXHAUSTED", lambda s: status(s.ask(bytes(MESSAGE_MB * 2**20 + 1)))),
    ("a picture of too many pixels", "INVALID_ARGUMENT", lambda service: status(service.ask(huge_png()))),
    ("a broken file", "INVALID_ARGUMENT", lambda service: status(service.ask(BROKEN))),
    ("a compressed message", "UNIMPLEMENTED", lambda s: status(s.ask(compression=grpc.Compression.Gzip))),
    ("a call more than the client's quota", "RESOURCE_EXHAUSTED", quota),
    ("a cancelled call", "CANCELLED", cancelled),
)
KILLED = ("kill -9 during a call, and a new start", "UNAVAILABLE", killed)
STOPPED = ("a call to a server that does not run", "UNAVAILABLE", lambda service: status(service.ask()))


def faults(setting: Setting) -> Outcome:
    """Provoke each fault, then ask a question that must be answered as before."""
    question = eight_questions(setting)[0]
    token, checks = secrets.token_hex(16), []
    before: tuple[int, ...] = ()
    with _service(setting, token) as (service, client):
        before = tokens_of(client, question)
        for name, expected, provoke in FAULTS:
            checks.append(_check(name, expected, provoke(service), lambda: _answers(client, question, before)))
        name, expected, provoke = KILLED
        found = provoke(service)
        what, documented, call = STOPPED
        checks.append(_check(what, documented, call(service), lambda: ""))
    with _service(setting, token) as (_, client):
        checks.append(_check(name, expected, found, lambda: _answers(client, question, before)))
    return Outcome(tuple(checks))


@contextmanager
def _service(setting: Setting, token: str) -> Iterator[tuple[Service, ReportClient]]:
    clients, token_file = setting.folder / "clients.toml", setting.folder / "token"
    digest = hashlib.sha256(token.encode()).hexdigest()
    _write_secret(token_file, token)
    _write_secret(clients, f'[acceptance]\ntoken_sha256 = "{digest}"\nmax_calls = {CALLS}\n')
    options = ("--clients", clients, "--max-message-mb", MESSAGE_MB, "--debug-ignore-stop")
    try:
        with (
            setting.server("faults", *options) as served,
            grpc.insecure_channel(served.address) as channel,
            closing(ReportClient(served.address, token_file=token_file, retries=PATIENCE)) as client,
        ):
            most = client.connection.model_info().limits.max_sequence
            yield Service(served, report_pb2_grpc.ReportServiceStub(channel), most * 3 // 4, token), client
    finally:
        clients.unlink(missing_ok=True)
        token_file.unlink(missing_ok=True)


def _write_secret(file: Path, text: str) -> None:
    file.touch(0o600)
    file.write_text(text, encoding="utf-8")


def _answers(client: ReportClient, question: Question, before: tuple[int, ...]) -> str:
    return "" if tokens_of(client, question) == before else " Afterwards the service writes another text."


def _check(name: str, expected: str, found: str, afterwards: Callable[[], str]) -> Check:
    wrong = "" if found == expected else f" Its status is {found}."
    wrong += afterwards()
    return Check(name, State.FAILED if wrong else State.PASSED, f"{expected} is documented.{wrong}")
