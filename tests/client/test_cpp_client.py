"""The C++ client of examples/cpp, built and run against a real server: the same text as the Python client's, and its exit codes."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.client import report_command
from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.client.wire.requests import ReportRequest
from echovlm_edge.runtime.contracts.errors import (
    Busy,
    InvalidInput,
    NotFound,
    NotOffered,
    NotPossibleHere,
    Unavailable,
    UnusableNumbers,
    UserError,
)
from echovlm_edge.runtime.contracts.request import Event, GenerationRequest, ImageInput, Sampling, TextDelta
from echovlm_edge.runtime.serving.access.clients import ClientsFile
from echovlm_edge.runtime.serving.access.tls import TlsFiles
from echovlm_edge.runtime.serving.messages import CallLimits
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions
from tests.support import golden
from tests.support.authority import Authority
from tests.support.clients_file import clients_file
from tests.support.decoding_engine import DecodingEngine
from tests.support.loopback_addresses import ELSEWHERE, HERE
from tests.support.recording_service import recording_service
from tests.support.running_server import Running, running

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "cpp"
TOKENS = 24
IMAGES = golden.load("two_images_zh").images
Cart = Callable[..., "subprocess.CompletedProcess[str]"]


def missing() -> str:
    """What cannot be found of what the client is built with."""
    tools = ("cmake", "g++", "pkg-config", "protoc", "grpc_cpp_plugin")
    lacking = [tool for tool in tools if not shutil.which(tool)]
    if "pkg-config" not in lacking:
        libraries = ("grpc++", "protobuf")
        lacking += [
            name for name in libraries if subprocess.run(["pkg-config", "--exists", name], check=False).returncode
        ]
    return ", ".join(lacking)


@pytest.fixture(scope="module")
def program() -> Path:
    if lacking := missing():
        pytest.skip(
            f"{lacking} not found: apt install cmake g++ pkg-config libgrpc++-dev libprotobuf-dev protobuf-compiler-grpc"
        )
    for command in (
        ["cmake", "-S", ROOT / "examples" / "cpp", "-B", BUILD, "-DCMAKE_BUILD_TYPE=Debug"],
        ["cmake", "--build", BUILD, "--parallel", "2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return BUILD / "echovlm-cart"


@pytest.fixture(scope="module")
def cart(program: Path) -> Cart:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)

    return run


@pytest.fixture(scope="module")
def server(golden_bundle: Path) -> Iterator[Running]:
    with running(golden_bundle) as running_server:
        yield running_server


def asked(server: Running | ReportServer, *more: object, images: bool = True) -> list[object]:
    address = server.server.address if isinstance(server, Running) else server.address
    files = [word for path in IMAGES for word in ("--image", path)] if images else []
    return ["--server", address, "--max-new-tokens", TOKENS, *files, *more]


@pytest.mark.parametrize("as_study", [False, True])
def test_the_text_is_that_of_the_python_client(cart: Cart, server: Running, as_study: bool) -> None:
    images = [ImageInput(path.read_bytes()) for path in IMAGES]
    with Connection(server.server.address) as client:
        *_, last = client.generate(ReportRequest(images=images, sampling=Sampling(max_new_tokens=TOKENS)))
    done = cart(*asked(server), *(["--study"] if as_study else []))
    assert done.returncode == 0, done.stderr
    notes = "".join(f"Please check: {note}\n" for note in last.result.notes)
    assert notes and done.stdout == f"{last.result.text}\n\n{last.result.notice}\n{notes}"
    assert f"{last.result.usage.generated_tokens} tokens" in done.stderr and last.result.bundle_id in done.stderr
    assert re.search(r", request [0-9a-f]{16}\n$", done.stderr)


@pytest.mark.parametrize(("task", "words"), [("diagnosis", []), ("question", ["--prompt", "What is seen?"])])
def test_the_other_tasks(cart: Cart, server: Running, task: str, words: list[str]) -> None:
    done = cart(*asked(server, "--task", task, *words))
    assert done.returncode == 0 and "draft" in done.stdout.lower(), done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--image", "nowhere.png"], "The file nowhere.png cannot be read."),
        (["--image", __file__], "of no known kind"),
        (["--colour"], "There is no option --colour"),
        (["--timeout", "soon"], "--timeout must be a number"),
        (["--task", "sing"], "--task must be report, findings, diagnosis, question, judge or choice"),
        (["--server"], "--server needs a value"),
        (["--region", "knee"], "There is no --region knee"),
        (["--seed", "-1"], "--seed must be a whole number from 0"),
        (["--frames", "0,x"], "--frames must be a whole number from 0"),
        ([], "The question is empty"),
        (["--task", "report"], "image"),
    ],
)
def test_a_request_at_fault(cart: Cart, server: Running, words: list[str], sentence: str) -> None:
    done = cart(*asked(server, *words, images=False))
    assert done.returncode == 2 and done.stderr.startswith("error: ") and sentence in done.stderr, done.stderr


PYTHON_ALONE = {"--sr", "--fhir", "--json", "--version"}  # the first two need libraries that C++ has not
CPP_ALONE = {"--study"}  # in Python a program of a few lines: examples/python/study.py


def options_and_exit_codes(shown: str) -> tuple[set[str], list[str]]:
    """What a command's help lists: its options, and its exit codes with their meaning."""
    above, _, codes = shown.partition("exit codes:\n")
    listed = set(re.findall(r"^  (--[a-z-]+)", above, re.MULTILINE))
    return listed - {"--help"}, [" ".join(line.split()) for line in codes.splitlines() if line.strip()]


def test_options_and_exit_codes_are_those_of_echovlm_report(
    cart: Cart, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        report_command.main(["--help"])
    python, codes = options_and_exit_codes(capsys.readouterr().out)
    done = cart("--help")
    assert done.returncode == 0
    cpp, cpp_codes = options_and_exit_codes(done.stdout)
    assert cpp - python == CPP_ALONE and python - cpp == PYTHON_ALONE
    assert codes == cpp_codes and len(codes) == 6


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--frames", "0,5", "--frames", "9"],
        [
            *("--frames-spaced", 4, "--no-crop", "--allow-mixed-studies", "--language", "zh", "--region", "liver"),
            *("--prompt", "Write.", "--max-new-tokens", 7, "--temperature", 0.5, "--top-k", 3, "--top-p", 0.25),
            *("--repetition-penalty", 1.5, "--seed", 2**63, "--task", "report"),
        ],
        ["--task", "findings", "--image-tokens", 64, "--system", "Be brief."],
        ["--task", "judge", "--prompt", "It is a cyst.", "--system", "Be brief."],
        ["--task", "choice", "--prompt", "A. Cyst. B. Nodule.", "--then", "Where?", "--then", "How large?"],
    ],
)
def test_the_same_options_send_the_same_request(cart: Cart, words: list[object]) -> None:
    asked = ["--image", *map(str, IMAGES), *map(str, words)]
    with recording_service() as (recorded, address):
        assert report_command.main(["--server", address, *asked]) == 0
        expected = recorded.report, recorded.question
        done = cart("--server", address, *asked)
    assert done.returncode == 0, done.stderr
    for sent in (*expected, recorded.report, recorded.question):  # Python sends the defaults too
        for name, default in vars(Sampling()).items():
            if not sent.options.sampling.HasField(name):
                setattr(sent.options.sampling, name, default)
        sent.options.priority = pb.PRIORITY_INTERACTIVE
        sent.options.language = sent.options.language or pb.LANGUAGE_EN
        for image in [*sent.images, *(image for turn in sent.conversation.turns for image in turn.images)]:
            image.frames.SetInParent()
    assert (recorded.report, recorded.question) == expected


def test_an_old_server_is_asked_no_conversation(cart: Cart) -> None:
    with recording_service() as (recorded, address):
        recorded.limits.max_turns = 0
        done = cart("--server", address, "--prompt", "Why?", "--then", "Where?")
    assert done.returncode == 2 and "too old for conversations" in done.stderr and recorded.calls == ["GetModelInfo"]


def test_a_study_is_asked_again_with_its_images_where_they_were_shown(cart: Cart, server: Running) -> None:
    done = cart(*asked(server, "--study", "--then", "Where?", "--then", "How large?"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.lower().count("not reviewed by a clinician") == 3


class Failing(DecodingEngine):
    """Raises what it is told to."""

    def __init__(self, error: UserError) -> None:
        super().__init__()
        self.error = error

    def generate(self, request: GenerationRequest, stopped: Callable[[], bool]) -> Iterator[Event]:
        raise self.error
        yield


@pytest.mark.parametrize(
    "error",
    [
        *(InvalidInput("Wrong."), NotPossibleHere("Never."), NotFound("Gone."), NotOffered("Not here.")),
        *(UnusableNumbers(), Busy("Full.", 60), Unavailable("Shutting down."), RuntimeError("broken")),
    ],
)
def test_a_failed_call_ends_both_commands_alike(cart: Cart, error: Exception, tmp_path: Path) -> None:
    server = ReportServer(Failing(error), ServerOptions("127.0.0.1:0", grace_seconds=0.1))  # type: ignore[arg-type]
    try:
        words = ["--server", server.address, "--image", str(IMAGES[0])]
        code, done = report_command.main(words), cart(*words)
    finally:
        server.stop()
    assert done.returncode == code in (2, 3, 4), done.stderr
    if isinstance(error, UserError):
        assert done.stderr == f"error: {error}\n"


def test_a_request_that_is_too_large_is_no_busy_server(cart: Cart, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(3 << 20))
    options = ServerOptions("127.0.0.1:0", limits=CallLimits(message_bytes=2 << 20), grace_seconds=0.1)
    server = ReportServer(DecodingEngine(), options)
    try:
        done = cart("--server", server.address, "--image", tmp_path / "large")
    finally:
        server.stop()
    assert done.returncode == 2, done.stderr


def test_ones_own_studies_are_listed_and_ended(cart: Cart) -> None:
    server = ReportServer(DecodingEngine(), ServerOptions("127.0.0.1:0", grace_seconds=0.1))
    try:
        with Connection(server.address) as client:
            client.add_image(client.begin_study(), ImageInput(IMAGES[0].read_bytes()))
        listed = cart("--server", server.address, "--studies")
        first, last = listed.stdout.splitlines()
        assert "1 image(s)" in first and last == "1 of 64 studies are open."
        ended = cart("--server", server.address, "--studies", "--end-study", first.split()[0])
        assert (ended.returncode, ended.stdout) == (0, "0 of 64 studies are open.\n")
        assert cart("--server", server.address, "--end-study", first.split()[0]).returncode == 2
    finally:
        server.stop()


def test_no_server(cart: Cart) -> None:
    done = cart("--server", "127.0.0.1:1", "--task", "question", "--prompt", "Why?")
    assert done.returncode == 4 and "No server answers at 127.0.0.1:1" in done.stderr, done.stderr


def test_out_of_time(cart: Cart, server: Running) -> None:
    done = cart(*asked(server, "--timeout", 0.01))
    assert done.returncode == 5 and "within the time given" in done.stderr, done.stderr


def test_who_gets_in(cart: Cart, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    clients = clients_file(
        tmp_path, {"cart-7": {"token": "secret"}, "workstation": {"certificate": "workstation.example"}}
    )
    for name, text in (("right", "secret\n"), ("wrong", "guess\n")):
        (tmp_path / name).write_text(text)
    (tmp_path / "other").mkdir()
    options = ServerOptions("localhost:0", tls=TlsFiles(*authority.issue("server", "localhost")), grace_seconds=0.1)
    server = ReportServer(DecodingEngine(), options, access=ClientsFile(clients))
    ask = asked(server, "--task", "question", "--prompt", "Why?", images=False)
    tls = ("--tls-ca", authority.ca_file)
    try:
        assert cart(*ask, *tls, "--token-file", tmp_path / "right").returncode == 0
        wrong = cart(*ask, *tls, "--token-file", tmp_path / "wrong")
        assert wrong.returncode == 2 and "guess" not in wrong.stderr, wrong.stderr
        assert cart(*ask, *tls).returncode == 2
        assert cart(*ask, "--token-file", tmp_path / "right").returncode == 4  # in plain text, on loopback alone
        assert cart(*ask, "--tls-ca", Authority(tmp_path / "other").ca_file).returncode == 4
    finally:
        server.stop()


@pytest.mark.parametrize("address", ELSEWHERE)
def test_a_token_does_not_travel_further(cart: Cart, tmp_path: Path, address: str) -> None:
    (tmp_path / "token").write_text("secret")
    done = cart("--server", address, "--task", "question", "--prompt", "?", "--token-file", tmp_path / "token")
    assert done.returncode == 2 and "in plain text" in done.stderr and "secret" not in done.stderr, done.stderr


@pytest.mark.parametrize("address", [*(address for address in HERE if ":1" in address), "127.0.0.1:1"])
def test_a_token_may_travel_to_this_computer(cart: Cart, tmp_path: Path, address: str) -> None:
    (tmp_path / "token").write_text("secret")
    done = cart("--server", address, "--task", "question", "--prompt", "?", "--token-file", tmp_path / "token")
    assert done.returncode == 4, done.stderr  # nobody is there


def test_a_call_to_this_computer_takes_no_proxy(cart: Cart, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")  # where nobody is
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    done = cart(*asked(server, "--task", "question", "--prompt", "Why?", images=False))
    assert done.returncode == 0, done.stderr


class Full(DecodingEngine):
    """Has no room for its first calls."""

    def __init__(self, refusals: int, retry_after: float = 0.2) -> None:
        super().__init__()
        self.refusals, self.retry_after = refusals, retry_after
        self.refused = threading.Event()

    def generate(self, request: GenerationRequest, stopped: Callable[[], bool]) -> Iterator[Event]:
        if self.refusals:
            self.refusals -= 1
            self.refused.set()
            raise Busy("Full.", self.retry_after)
        yield from super().generate(request, stopped)


@pytest.mark.parametrize(("retries", "code"), [(0, 3), (1, 3), (2, 0)])
def test_a_busy_server_is_asked_again(cart: Cart, retries: int, code: int) -> None:
    server = ReportServer(Full(2), ServerOptions("127.0.0.1:0", grace_seconds=0.1))
    try:
        done = cart(*asked(server, "--task", "question", "--prompt", "Why?", "--retries", retries, images=False))
    finally:
        server.stop()
    assert done.returncode == code, done.stderr


class Endless(DecodingEngine):
    """Writes until it is stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = threading.Event()

    def generate(self, request: GenerationRequest, stopped: Callable[[], bool]) -> Iterator[Event]:
        try:
            while not stopped():
                yield TextDelta("more ")
        finally:
            self.ended.set()


def test_an_interrupt_ends_a_pause_between_retries(program: Path) -> None:
    engine = Full(1, retry_after=29)  # as long as the program waits for a server
    server = ReportServer(engine, ServerOptions("127.0.0.1:0", grace_seconds=0.1))
    words: list[Any] = asked(server, "--task", "question", "--prompt", "Why?", "--retries", 9, images=False)
    with subprocess.Popen([program, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert engine.refused.wait(10)
        server.stop()  # ends when the refusal is sent: the program pauses now, or is about to
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130  # would go on for 29 s
        assert process.stderr and b"The call was cancelled." in process.stderr.read()


@pytest.mark.parametrize("as_study", [False, True])
@pytest.mark.parametrize("allowed", [False, True])
def test_mixed_studies_are_asked_for(cart: Cart, as_study: bool, allowed: bool) -> None:
    words = [*(["--study"] if as_study else []), *(["--allow-mixed-studies"] if allowed else [])]
    with recording_service() as (recorded, address):
        done = cart("--server", address, "--image", IMAGES[0], *words)
    assert done.returncode == 0, done.stderr
    assert recorded.report.options.allow_mixed_studies == allowed
    assert recorded.added.allow_mixed_studies == (allowed and as_study)


def test_an_interrupt_cancels_the_call(program: Path) -> None:
    engine = Endless()
    server = ReportServer(engine, ServerOptions("127.0.0.1:0", grace_seconds=0.1))
    words: list[Any] = asked(server, "--task", "question", "--prompt", "Why?", images=False)
    with subprocess.Popen([program, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.read(4) == b"more"
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(10) == 130
    assert engine.ended.wait(10), "the server went on writing"
    server.stop()
